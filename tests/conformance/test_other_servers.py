"""What the suites that vLLM, SGLang and llama.cpp publish for their OpenAI routes expect of ours.

Written anew from their expectations, where the documented API says nothing else. CONFORMANCE_URL runs all of it
against a served model.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from patience import PATIENCE_S

CHAT: list[Any] = [
    {"role": "system", "content": "You are a helpful AI assistant"},
    {"role": "user", "content": "What is the capital of France? Answer in a few words."},
]
PROMPT = "The capital of France is"
FUNCTION = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def ids(url: str) -> list[int]:
    found: list[int] = httpx.post(url + "/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    return found


def refused(url: str, path: str, **body: Any) -> dict[str, Any]:
    response = httpx.post(url + path, json=body, timeout=PATIENCE_S)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["message"] and error["type"]
    return error


# -- completions


@pytest.mark.parametrize(
    ("echo", "logprobs", "listed", "n", "as_ids"),
    list(product((False, True), (None, 5), (False, True), (1, 2), (False, True))),
)
def test_completions_in_every_combination(
    client: OpenAI, model: str, ids: list[int], echo: bool, logprobs: int | None, listed: bool, n: int, as_ids: bool
) -> None:
    prompt: Any = ids if as_ids else PROMPT
    asked: dict[str, Any] = {"model": model, "prompt": [prompt, prompt] if listed else prompt, "temperature": 0}
    asked |= {"max_tokens": 6, "echo": echo, "logprobs": logprobs, "n": n}
    whole = client.completions.create(**asked)
    assert len(whole.choices) == (2 if listed else 1) * n
    assert whole.usage is not None and whole.usage.prompt_tokens == len(ids) * (2 if listed else 1)
    texts: dict[int, str] = {}
    *chunks, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert last.usage is not None and last.usage.total_tokens == whole.usage.total_tokens
    for chunk in chunks:
        (choice,) = chunk.choices
        assert not echo or choice.index in texts or choice.text.startswith(PROMPT)
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        assert (choice.logprobs is not None) == (logprobs is not None)
    for choice in whole.choices:
        assert texts[choice.index] == choice.text and (not echo or choice.text.startswith(PROMPT))
        if logprobs is not None:
            assert choice.logprobs is not None and choice.logprobs.top_logprobs and choice.logprobs.tokens
            assert isinstance(choice.logprobs.tokens[0], str) and len(choice.logprobs.top_logprobs[1]) > 0


@pytest.mark.parametrize(("logprobs", "least", "most"), [(0, 1, 1), (1, 1, 2), (5, 5, 6)])
def test_top_logprobs_hold_as_many_as_asked_and_the_chosen(
    client: OpenAI, model: str, ids: list[int], logprobs: int, least: int, most: int
) -> None:
    for echo in (False, True):
        answer = client.completions.create(
            model=model, prompt=ids, max_tokens=5, temperature=0, logprobs=logprobs, echo=echo
        )
        found = answer.choices[0].logprobs
        assert found is not None and found.top_logprobs and found.token_logprobs and found.text_offset
        assert all(least <= len(top) <= most for top in found.top_logprobs[1 if echo else 0 :])
        assert (found.token_logprobs[0] is None) == echo and (found.top_logprobs[0] is None) == echo
        assert len(found.text_offset) == len(found.token_logprobs) == (len(ids) if echo else 0) + 5


def test_too_many_logprobs_are_refused_and_harm_nothing(client: OpenAI, model: str, ids: list[int]) -> None:
    for logprobs, stream in ((21, False), (30, True)):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=model, prompt=ids, logprobs=logprobs, stream=stream)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model=model, messages=CHAT, logprobs=True, top_logprobs=logprobs, stream=stream
            )
    assert client.completions.create(model=model, prompt=ids, max_tokens=2).choices[0].text is not None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_prompt_logprobs(url: str, client: OpenAI, model: str, count: int) -> None:
    extra = {"prompt_logprobs": count}
    prompts = ["A robot may not injure another robot", "My name is"]
    answer = client.completions.create(model=model, prompt=prompts, max_tokens=1, extra_body=extra)
    chat = client.chat.completions.create(model=model, messages=CHAT, max_tokens=1, extra_body=extra)
    each = [choice.model_dump()["prompt_logprobs"] for choice in answer.choices] + [
        chat.model_dump()["prompt_logprobs"]
    ]
    for found in each:
        assert found[0] is None and all(max(count, 1) <= len(entry) <= count + 1 for entry in found[1:])
        assert all(value["logprob"] <= 0 for entry in found[1:] for value in entry.values())
    assert (
        "prompt_logprobs"
        not in client.completions.create(model=model, prompt="a", max_tokens=1).choices[0].model_dump()
    )
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": CHAT})):
        assert refused(url, path, prompt_logprobs=-1, **body)["param"] == "prompt_logprobs"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_stream_options(url: str, path: str) -> None:
    body: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "stream": True}
    body |= {"prompt": PROMPT} if path == "/v1/completions" else {"messages": CHAT}

    def usages(**options: bool) -> list[Any]:
        import json

        text = httpx.post(url + path, json={**body, "stream_options": options}, timeout=PATIENCE_S).text
        return [json.loads(line[6:]).get("usage") for line in text.splitlines() if line.startswith("data: {")]

    for options in ({}, {"include_usage": False}, {"include_usage": False, "continuous_usage_stats": True}):
        assert set(map(str, usages(**options))) == {"None"}
    *before, last = usages(include_usage=True, continuous_usage_stats=False)
    assert last["total_tokens"] == last["prompt_tokens"] + last["completion_tokens"] and set(before) == {None}
    counts = [usage["completion_tokens"] for usage in usages(include_usage=True, continuous_usage_stats=True)]
    assert counts == sorted(counts) and counts[-1] == last["completion_tokens"]
    for options in ({"include_usage": True}, {"include_usage": None}, {"continuous_usage_stats": True}, {}):
        refused(url, path, **{**body, "stream": False, "stream_options": options})


def test_ids_out_of_vocabulary_are_named_with_its_size(url: str) -> None:
    size = httpx.get(url + "/tokenizer_info").json()["vocab_size"]
    assert "out of vocabulary" in refused(url, "/v1/completions", prompt=[9_999_999])["message"]
    for fields in (
        {"logit_bias": {str(size + 1): 1.0}},
        {"stop_token_ids": [size + 1]},
        {"allowed_token_ids": [size + 1]},
    ):
        message = refused(url, "/v1/chat/completions", messages=CHAT, **fields)["message"]
        assert str(size + 1) in message and str(size) in message.replace(str(size + 1), "")
    for fields in ({"logit_bias": {"bad1": 50.0, "bad2": 20}}, {"logit_bias": {"1": "x"}}, {"stop_token_ids": [-1]}):
        assert next(iter(fields)) in refused(url, "/v1/chat/completions", messages=CHAT, **fields)["message"]
    valid = {"logit_bias": {str(size - 1): 1.0}, "stop_token_ids": [size - 1], "max_tokens": 2}
    assert (
        httpx.post(url + "/v1/chat/completions", json={"messages": CHAT, **valid}, timeout=PATIENCE_S).status_code
        == 200
    )


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], None, [-1], [[-1]], ["a", 1], {"a": 1}, 5], ids=str)
def test_prompts_that_are_none_are_refused(url: str, prompt: Any) -> None:
    assert refused(url, "/v1/completions", prompt=prompt)["param"].startswith("prompt")


@pytest.mark.parametrize("body", [b'"text"', b'["not", "an", "object"]', b"42", b"null", b"this is not json{{{", b""])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/responses"])
def test_bodies_that_are_no_objects_are_refused(url: str, path: str, body: bytes) -> None:
    response = httpx.post(url + path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["message"]


# -- chat


@pytest.mark.parametrize(("top", "n"), list(product((None, 5), (1, 2))))
def test_chat_with_logprobs_and_choices(client: OpenAI, model: str, top: int | None, n: int) -> None:
    asked: dict[str, Any] = {"model": model, "messages": CHAT, "temperature": 0, "max_tokens": 8, "n": n}
    asked |= {"logprobs": top is not None, "top_logprobs": top}
    whole = client.chat.completions.create(**asked)
    assert len(whole.choices) == n
    for choice in whole.choices:
        assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
        assert (choice.logprobs is None) == (top is None)
        if choice.logprobs is not None:
            content = choice.logprobs.content or []
            assert content and all(len(entry.top_logprobs) == top and entry.bytes is not None for entry in content)
            assert "".join(entry.token for entry in content) == choice.message.content
    seen: dict[int, list[str]] = {}
    ends: list[int] = []
    *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        (choice,) = chunk.choices
        if choice.index not in seen:
            seen[choice.index] = []
            assert choice.delta.role == "assistant"
            continue
        assert choice.delta.role is None
        if choice.finish_reason is not None:
            ends.append(choice.index)
        else:
            assert isinstance(choice.delta.content, str) and (choice.logprobs is None) == (top is None)
            seen[choice.index].append(choice.delta.content)
    assert sorted(ends) == list(range(n)) and last.usage is not None and last.choices == []
    assert ["".join(seen[i]) for i in range(n)] == [choice.message.content for choice in whole.choices]


@pytest.mark.parametrize(
    "messages",
    [None, "string", [], [123], [{}], [{"role": 123}], [{"role": "system", "content": 123}],
     [{"role": "system", "content": "test"}, {}], [{"role": "user"}], [{"role": "no-such-role", "content": "x"}]],
    ids=str,
)  # fmt: skip
def test_wrong_messages_are_refused(url: str, messages: Any) -> None:
    assert refused(url, "/v1/chat/completions", messages=messages)["param"].startswith("messages")


@pytest.mark.parametrize(
    "response_format",
    [{"type": "sound"}, {"type": "json_schema"}, {"type": "json_object", "schema": 123},
     {"type": "json_object", "schema": {"type": 123}}, {"type": "json_object", "schema": {"type": "hiccup"}}, {}],
    ids=str,
)  # fmt: skip
def test_wrong_formats_are_refused(url: str, response_format: Any) -> None:
    error = refused(url, "/v1/chat/completions", messages=CHAT, response_format=response_format)
    assert error["param"].startswith("response_format")


@pytest.mark.parametrize(
    "constraint",
    [{"regex": "[.*"}, {"regex": {"1": "Python"}}, {"grammar": "root ::= nothing_there"}, {"choice": []},
     {"json": {"type": "object", "properties": {"foo": "bar"}}}, {"regex": "a", "choice": ["a"]}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_constraints_that_cannot_be_enforced_are_refused(url: str, constraint: Any, stream: bool) -> None:
    fields = {"structured_outputs": constraint, "stream": stream}
    assert refused(url, "/v1/completions", prompt=PROMPT, **fields)["param"].startswith("structured_outputs")
    assert refused(url, "/v1/chat/completions", messages=CHAT, **fields)["param"].startswith("structured_outputs")


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        (None, {"type": "function", "function": {"name": "look"}}),
        (None, "required"),
        (TOOLS, {"type": "function", "function": {"name": "undefined"}}),
        (TOOLS, {}),
        (TOOLS, "bogus"),
    ],
    ids=str,
)
def test_tool_choices_that_name_nothing_are_refused(url: str, tools: Any, choice: Any) -> None:
    error = refused(url, "/v1/chat/completions", messages=CHAT, tools=tools, tool_choice=choice)
    assert error["param"].startswith("tool")


def test_what_is_unset_but_sent_is_unset(url: str, model: str) -> None:
    unset = dict.fromkeys(
        ["tools", "tool_choice", "stop", "seed", "logit_bias", "stream", "response_format", "n", "user"]
    )
    body = {"model": model, "messages": CHAT, "max_tokens": 4, "temperature": 0}
    plain = httpx.post(url + "/v1/chat/completions", json=body, timeout=PATIENCE_S).json()
    sent = httpx.post(
        url + "/v1/chat/completions", json={**unset, **body, "unknown_field": {"a": 1}}, timeout=PATIENCE_S
    ).json()
    assert plain["choices"] == sent["choices"]
    marked = [{**message, "extra_field": "0"} for message in CHAT]
    assert (
        httpx.post(url + "/v1/chat/completions", json={**body, "messages": marked}, timeout=PATIENCE_S).status_code
        == 200
    )


def test_texts_in_parts_are_texts(url: str) -> None:
    parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in CHAT]
    found = [httpx.post(url + "/tokenize", json={"messages": messages}).json()["tokens"] for messages in (CHAT, parts)]
    assert found[0] == found[1]


def test_prompts_beyond_the_context_are_refused(url: str) -> None:
    for stream in (False, True):
        error = refused(url, "/v1/chat/completions", messages=CHAT * 2000, stream=stream)
        assert error["code"] == "context_length_exceeded"


def test_seeds_of_64_bits(client: OpenAI, model: str) -> None:
    for seed in (-(2**63) - 1, 2**63):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=model, messages=CHAT, seed=seed)
    for seed in (-(2**63), 2**63 - 1):
        assert client.chat.completions.create(model=model, messages=CHAT, seed=seed, max_tokens=1).choices


# -- around them


def test_models_tell_their_context(client: OpenAI, model: str) -> None:
    (found,) = client.models.list()
    assert found.model_dump()["max_model_len"] > 0 and client.models.retrieve(model).model_dump()["root"] == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("non-existent-model")


def test_version_health_and_short_paths(url: str, model: str) -> None:
    assert set(httpx.get(url + "/version").json()) == {"version"}
    assert httpx.get(url + "/health").status_code == 200
    assert httpx.get(url + "/models").json()["data"][0]["id"] == model
    answer = httpx.post(url + "/chat/completions", json={"messages": CHAT, "max_tokens": 1}, timeout=PATIENCE_S).json()
    assert answer["object"] == "chat.completion"


@pytest.mark.parametrize("route", ["/completion", "/infill", "/slots", "/load", "/invocations", "/v1/rerank"])
def test_routes_of_others_are_plain_404s(url: str, route: str) -> None:
    response = httpx.post(url + route, json={"prompt": "a"})
    error = response.json()["error"]
    assert response.status_code == 404 and error["code"] in ("route_not_served", "not_found") and error["message"]


def test_tokenize_and_detokenize(url: str, model: str) -> None:
    for special in (False, True):
        asked = {"model": model, "prompt": "vllm1 This is a test prompt.", "add_special_tokens": special}
        found = httpx.post(url + "/tokenize", json=asked).json()
        assert found["count"] == len(found["tokens"]) and found["token_strs"] is None and found["max_model_len"] > 0
    given = httpx.post(url + "/detokenize", json={"model": model, "tokens": found["tokens"]}).json()
    assert given == {"prompt": "vllm1 This is a test prompt.", "content": "vllm1 This is a test prompt."}


def test_tokenize_as_llama_cpp_has_it(url: str) -> None:
    text = "What is the capital of France ? 媽 🤗"
    plain = httpx.post(url + "/tokenize", json={"content": text}).json()["tokens"]
    pieces = httpx.post(url + "/tokenize", json={"content": text, "with_pieces": True}).json()["tokens"]
    assert [entry["id"] for entry in pieces] == plain
    raw = b"".join(p.encode() if isinstance(p := entry["piece"], str) else bytes(p) for entry in pieces)
    assert raw.decode() == text


def test_a_conversation_with_tools_is_tokenized_as_chat_does_it(url: str) -> None:
    asked = {"messages": CHAT, "tools": TOOLS}
    count = httpx.post(url + "/tokenize", json=asked).json()["count"]
    assert count > httpx.post(url + "/tokenize", json={"messages": CHAT}).json()["count"]
    answer = httpx.post(url + "/v1/chat/completions", json={**asked, "max_tokens": 1}, timeout=PATIENCE_S).json()
    assert answer["usage"]["prompt_tokens"] == count
    text = httpx.post(url + "/apply-template", json=asked).json()["prompt"]
    assert httpx.post(url + "/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["count"] == count


def test_constraints_hold(url: str, model: str) -> None:
    if model == "fake-model":
        pytest.skip("the fake engine follows no grammar")

    def content(**fields: Any) -> str:
        body = {"messages": CHAT, "max_tokens": 24, "temperature": 0.7, **fields}
        return str(
            httpx.post(url + "/v1/chat/completions", json=body, timeout=PATIENCE_S).json()["choices"][0]["message"][
                "content"
            ]
        )

    assert content(structured_outputs={"choice": ["Rust", "Haskell"]}) in ("Rust", "Haskell")
    assert content(grammar='root ::= "a"{5,5}') == "aaaaa"
    assert content(json_schema={"const": "42"}) == '"42"'
    assert content(response_format={"type": "json_object", "schema": {"const": "42"}}) == '"42"'
    assert content(regex="[0-9]{3}-x").endswith("-x")
    assert content(ebnf='root ::= "yes" | "no"') in ("yes", "no")
