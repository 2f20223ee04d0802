"""The requests that lm_eval's `local-completions` makes, and what it takes from the answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from patience import PATIENCE_S


@pytest.fixture
def post(url: str) -> Any:
    def send(path: str, **body: Any) -> Any:
        response = httpx.post(url + path, json=body, timeout=PATIENCE_S)
        assert response.status_code == 200, response.text
        return response.json()

    return send


def scored(answer: Any, ctxlens: list[int]) -> list[tuple[float, bool]]:
    """(log-likelihood, whether it is what greedy decoding gives) of each choice's continuation."""
    found = []
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    for choice, ctxlen in zip(choices, ctxlens, strict=True):
        values = choice["logprobs"]["token_logprobs"][ctxlen:-1]
        tops = choice["logprobs"]["top_logprobs"][ctxlen:-1]
        greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
        found.append((sum(values), greedy))
    return found


def test_continuations_are_scored_alike_as_ids_and_as_text(post: Any, model: str) -> None:
    pairs = [("The capital of France is", " Paris"), ("Two plus two equals", " seven"), ("A", " b c d e f")]
    ids, ctxlens, texts = [], [], []
    for context, continuation in pairs:
        whole = post("/tokenize", prompt=context + continuation, add_special_tokens=False)["tokens"]
        ctxlens.append(len(post("/tokenize", prompt=context, add_special_tokens=False)["tokens"]))
        ids.append(whole)
        texts.append(context + continuation)
    fields = {"model": model, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    by_ids = post("/v1/completions", prompt=ids, **fields)
    assert [len(c["logprobs"]["tokens"]) for c in by_ids["choices"]] == [len(prompt) + 1 for prompt in ids]
    assert by_ids["usage"]["completion_tokens"] == len(pairs)
    together = scored(by_ids, ctxlens)
    assert all(value < 0 for value, _ in together)
    singly = [scored(post("/v1/completions", prompt=[i], **fields), [n])[0] for i, n in zip(ids, ctxlens, strict=True)]
    as_text = scored(post("/v1/completions", prompt=texts, **fields), ctxlens)
    for other in (singly, as_text):
        for (value, greedy), (same, same_greedy) in zip(together, other, strict=True):
            assert abs(value - same) < 1e-3 and greedy == same_greedy
    scores_only = post("/v1/completions", prompt=ids, **{**fields, "max_tokens": 0})
    for choice, whole in zip(scores_only["choices"], ids, strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) == len(whole)


def test_the_server_is_tokenizer_enough(url: str, post: Any) -> None:
    info = httpx.get(url + "/tokenizer_info").json()
    ids = post("/tokenize", prompt=info["eos_token"], add_special_tokens=False)["tokens"]
    assert len(ids) == 1 and post("/detokenize", tokens=ids)["prompt"] == info["eos_token"]
    text = "Grüße, 世界! 🦊\n  def f(x):"
    assert (
        post("/detokenize", tokens=post("/tokenize", prompt=text, add_special_tokens=False)["tokens"])["prompt"] == text
    )


def test_generation(post: Any, model: str) -> None:
    fields = {"model": model, "max_tokens": 12, "temperature": 0, "stop": ["\n", "."], "seed": 1234}
    answer = post("/v1/completions", prompt=["The sky is", "Water is"], **fields)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    chat = post("/v1/chat/completions", messages=[{"role": "user", "content": "The sky is", "type": "text"}], **fields)
    for text in [*(choice["text"] for choice in answer["choices"]), chat["choices"][0]["message"]["content"]]:
        assert text and "\n" not in text and "." not in text
