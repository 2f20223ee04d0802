"""POST /v1/completions, /tokenize, /detokenize."""

from __future__ import annotations

from typing import Any

import pytest
from server_harness import TEXT, Api, error_of, events, run

from octavo.client.fake import IM_END


def test_answer_has_the_shape_of_openai() -> None:
    async def test(api: Api) -> None:
        body = (await api.complete()).json()
        assert body["id"].startswith("cmpl-") and body["object"] == "text_completion"
        (choice,) = body["choices"]
        assert choice["text"] == TEXT[:16] and choice["finish_reason"] == "length" and choice["logprobs"] is None
        assert body["usage"]["prompt_tokens"] == 3 and body["usage"]["completion_tokens"] == 16

    run(test)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 200},
        {"echo": True},
        {"n": 2, "temperature": 1, "seed": 1},
        {"prompt": ["one", "two"], "n": 2},
        {"prompt": [97, 98]},
        {"prompt": [[97], [98, 99]], "echo": True, "logprobs": 2},
        {"logprobs": 3, "max_tokens": 60},
        {"stop": "fake", "logprobs": 0, "max_tokens": 60},
        {"echo": True, "max_tokens": 0, "logprobs": 1},
    ],
)
def test_streamed_equals_plain(fields: dict[str, Any]) -> None:
    async def test(api: Api) -> None:
        whole = (await api.complete(**fields)).json()
        response = await api.complete(**fields, stream=True, stream_options={"include_usage": True})
        *chunks, last, done = events(response.text)
        assert done == "[DONE]" and last["choices"] == []
        texts: dict[int, str] = {}
        logprobs: dict[int, dict[str, list[Any]]] = {}
        reasons: dict[int, list[str]] = {}
        for chunk in chunks:
            (choice,) = chunk["choices"]
            index = choice["index"]
            texts[index] = texts.get(index, "") + choice["text"]
            for key, values in (choice["logprobs"] or {}).items():
                logprobs.setdefault(index, {}).setdefault(key, []).extend(values)
            reasons.setdefault(index, []).extend([choice["finish_reason"]] if choice["finish_reason"] else [])
        for choice in whole["choices"]:
            assert texts[choice["index"]] == choice["text"]
            assert reasons[choice["index"]] == [choice["finish_reason"]]
            assert logprobs.get(choice["index"]) == choice["logprobs"]
        for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert last["usage"][key] == whole["usage"][key]

    run(test)


def test_choices_of_several_prompts_are_numbered_through() -> None:
    async def test(api: Api) -> None:
        body = (await api.complete(prompt=["a", "bb", "ccc"], n=2, echo=True, max_tokens=1)).json()
        assert [c["index"] for c in body["choices"]] == list(range(6))
        assert [c["text"] for c in body["choices"]] == ["aH", "aH", "bbH", "bbH", "cccH", "cccH"]
        assert body["usage"]["prompt_tokens"] == 6 and body["usage"]["completion_tokens"] == 6

    run(test)


def test_echo_with_logprobs_scores_the_prompt() -> None:
    async def test(api: Api) -> None:
        for prompt in ("a🦊b", [[97, 240, 159, 166, 138, 98]]):
            body = (await api.complete(prompt=prompt, echo=True, logprobs=1, max_tokens=1)).json()
            (choice,) = body["choices"]
            found = choice["logprobs"]
            assert choice["text"] == "a🦊bH"
            assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
            assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["text_offset"]) == 7
            assert all(value == -0.25 for value in found["token_logprobs"][1:])
            assert found["text_offset"][0] == 0 and found["text_offset"][-2:] == [2, 3]
            assert choice["text"][found["text_offset"][-1] :] == "H"

    run(test)


@pytest.mark.parametrize("prompt", ["<|im_start|>a<|im_end|>b", [[256, 97, 257, 98]]])
@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_shows_special_tokens_and_its_offsets_count_them(prompt: Any, stream: bool) -> None:
    async def test(api: Api) -> None:
        response = await api.complete(prompt=prompt, echo=True, logprobs=0, max_tokens=2, stream=stream)
        bodies = events(response.text)[:-1] if stream else [response.json()]
        parts = [choice for body in bodies for choice in body["choices"]]
        text = "".join(part["text"] for part in parts)
        tokens = [token for part in parts for token in part["logprobs"]["tokens"]]
        offsets = [offset for part in parts for offset in part["logprobs"]["text_offset"]]
        assert text == "".join(tokens) == "<|im_start|>a<|im_end|>bHe"
        assert all(text.startswith(token, at) for token, at in zip(tokens, offsets, strict=True))

    run(test)


def test_max_tokens_zero_only_scores() -> None:
    async def test(api: Api) -> None:
        body = (await api.complete(prompt=[[97, 98]], echo=True, logprobs=1, max_tokens=0)).json()
        assert body["choices"][0]["text"] == "ab" and body["choices"][0]["logprobs"]["tokens"] == ["a", "b"]
        assert body["usage"]["completion_tokens"] == 0

    run(test)


def test_logprobs_hold_the_chosen_token_and_offsets_point_into_the_text() -> None:
    async def test(api: Api) -> None:
        choice = (await api.complete(logprobs=2, max_tokens=5)).json()["choices"][0]
        found = choice["logprobs"]
        for token, offset, top in zip(found["tokens"], found["text_offset"], found["top_logprobs"], strict=True):
            assert choice["text"][offset : offset + len(token)] == token
            assert token in top and len(top) == 2

    run(test)


def test_best_of_counts_all_candidates_and_returns_n() -> None:
    async def test(api: Api) -> None:
        body = (await api.complete(best_of=3, n=1, max_tokens=4)).json()
        assert len(body["choices"]) == 1 and body["choices"][0]["logprobs"] is None
        assert body["usage"]["completion_tokens"] == 12

    run(test)


def test_a_bias_of_zero_and_best_of_zero_change_nothing() -> None:
    async def test(api: Api) -> None:
        plain = (await api.complete()).json()["choices"]
        fields = {"logit_bias": {"foo": 0, "97": 0.0}, "best_of": 0, "n": 1.0, "max_tokens": 16.0, "seed": None}
        assert (await api.complete(**fields)).json()["choices"] == plain

    run(test)


def test_refused_biases_are_all_named() -> None:
    async def test(api: Api) -> None:
        error = error_of(await api.complete(logit_bias={"foo": 1, "bar": 2, "97": 3}), 400)
        assert "'foo', 'bar'" in error["message"] and "97" not in error["message"]
        assert "259 tokens" in error_of(await api.complete(logit_bias={"300": 1}), 400)["message"]

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_on_request(stream: bool) -> None:
    async def test(api: Api) -> None:
        asked: dict[str, Any] = {"return_token_ids": True, "return_tokens_as_token_ids": True, "logprobs": 1}
        response = await api.complete(**asked, prompt=["ab", "c"], max_tokens=4, echo=True, stream=stream)
        bodies = events(response.text)[:-1] if stream else [response.json()]
        parts = [choice for body in bodies for choice in body["choices"] if choice["index"] == 0]
        assert [part.get("prompt_token_ids") for part in parts] == [[97, 98], *[None] * (len(parts) - 1)]
        assert [i for part in parts for i in part["token_ids"]] == list(b"Hell")
        tokens = [token for part in parts for token in part["logprobs"]["tokens"]]
        assert tokens == [f"token_id:{i}" for i in b"abHell"]
        tops = [top for part in parts for top in part["logprobs"]["top_logprobs"]]
        assert tops[0] is None and all(key.startswith("token_id:") for top in tops[1:] for key in top)

    run(test)


def test_the_fingerprint_is_that_of_the_engine() -> None:
    async def test(api: Api) -> None:
        plain = (await api.complete()).json()["system_fingerprint"]
        chunks = events((await api.complete(stream=True)).text)[:-1]
        chat = (await api.chat()).json()["system_fingerprint"]
        assert plain.startswith("fp_") and {chat, *(c["system_fingerprint"] for c in chunks)} == {plain}

    run(test)


def test_every_chunk_has_logprobs_when_asked() -> None:
    async def test(api: Api) -> None:
        chunks = events((await api.complete(stream=True, logprobs=1, max_tokens=200)).text)[:-1]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert all(isinstance(chunk["choices"][0]["logprobs"]["tokens"], list) for chunk in chunks)

    run(test)


def test_prompt_logprobs_per_choice() -> None:
    async def test(api: Api) -> None:
        body = (await api.complete(prompt=["ab", "cde"], prompt_logprobs=2, max_tokens=1)).json()
        assert [len(c["prompt_logprobs"]) for c in body["choices"]] == [2, 3]
        assert body["choices"][0]["prompt_logprobs"][1]["98"]["rank"] == 1

    run(test)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, [1]]}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ["x"] * 2000}, "prompt"),
        ({"prompt": ["x"] * 1000, "n": 128}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"logit_bias": {"foo": 1, "bar": -1}}, "logit_bias"),
        ({"logit_bias": {"259": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "much"}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(2000), 1)}, "logit_bias"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"suffix": "tail"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "stream": True}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_wrong_prompts_and_fields_are_named(fields: dict[str, Any], param: str) -> None:
    async def test(api: Api) -> None:
        for stream in (False, True) if "stream" not in fields else (True,):
            assert error_of(await api.complete(**{**fields, "stream": stream}), 400)["param"] == param

    run(test)


def test_one_refused_prompt_leaves_none_running() -> None:
    async def test(api: Api) -> None:
        error = error_of(await api.complete(prompt=["fine", "x" * 5000]), 400)
        assert error["code"] == "context_length_exceeded"
        assert api.engine.num_running == 0

    run(test, step_delay=0.01)


def test_tokenize_and_detokenize() -> None:
    async def test(api: Api) -> None:
        body = (await api.post("/tokenize", prompt="hé<|im_end|>", return_token_strs=True)).json()
        assert body["count"] == len(body["tokens"]) == len(body["token_strs"]) and body["max_model_len"] == 2048
        assert (await api.post("/detokenize", tokens=body["tokens"])).json() == {
            "prompt": "hé<|im_end|>", "content": "hé<|im_end|>",
        }  # fmt: skip
        plain = (await api.post("/tokenize", prompt="hi")).json()
        assert plain["tokens"] == [104, 105] and plain["token_strs"] is None
        assert (await api.post("/tokenize", prompt="")).json()["count"] == 0
        assert (await api.post("/tokenize", prompt="x" * 10_000)).json()["count"] == 10_000
        assert error_of(await api.post("/tokenize"), 400)["param"] == "prompt"
        assert error_of(await api.post("/tokenize", prompt="a", messages=[]), 400)["param"] == "prompt"
        assert error_of(await api.post("/tokenize", messages=[]), 400)["param"] == "messages"
        assert error_of(await api.post("/detokenize", tokens=[999]), 400)["param"] == "tokens"
        assert error_of(await api.post("/detokenize", tokens=["a"]), 400)["param"] == "tokens[0]"
        assert error_of(await api.post("/tokenize", prompt="a", model="other"), 404)["code"] == "model_not_found"

    run(test)


def test_special_tokens_of_a_prompt_are_those_tokens_unless_told_otherwise() -> None:
    async def test(api: Api) -> None:
        for fields, count in (({}, 2), ({"parse_special": False}, 11)):
            body = (await api.complete(prompt="a<|im_end|>", echo=True, max_tokens=1, **fields)).json()
            assert body["usage"]["prompt_tokens"] == count and body["choices"][0]["text"] == "a<|im_end|>H"
            assert (await api.post("/tokenize", prompt="a<|im_end|>", **fields)).json()["count"] == count

    run(test)


def test_tokenizer_info_is_enough_to_tokenize_by_the_server() -> None:
    async def test(api: Api) -> None:
        body = (await api.http.get("/tokenizer_info")).json()
        assert body["eos_token"] == "<|im_end|>" and body["bos_token"] is None and not body["add_bos_token"]
        assert "im_start" in body["chat_template"] and body["model_max_length"] == 2048 and body["vocab_size"] == 259
        asked = {"prompt": body["eos_token"], "add_special_tokens": False}
        assert (await api.post("/tokenize", **asked)).json()["tokens"] == [257]

    run(test)


def test_many_long_prompts_together() -> None:
    async def test(api: Api) -> None:
        prompts = [f"{i} " + "x" * 200 for i in range(100)]
        body = (await api.complete(prompt=prompts, echo=True, max_tokens=1)).json()
        assert [c["text"] for c in body["choices"]] == [p + "H" for p in prompts]
        mixed = (await api.complete(prompt=["a", [98, 99]], echo=True, max_tokens=1)).json()
        assert [c["text"] for c in mixed["choices"]] == ["aH", "bcH"]

    run(test)


def test_a_negative_seed_is_drawn() -> None:
    async def test(api: Api) -> None:
        async def said(seed: int) -> str:
            body = (await api.post("/v1/completions", prompt="a", temperature=1, seed=seed)).json()
            return str(body["choices"][0]["text"])

        assert await said(7) == await said(7)
        assert len({await said(-1) for _ in range(8)}) > 1

    run(test)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fields", [{}, {"stop": "fake"}, {"n": 2, "best_of": 3}])
def test_ids_and_log_probabilities_agree(stream: bool, fields: dict[str, Any]) -> None:
    """The end of sequence, and what a stop string cut off, is in both or in neither."""
    if stream and "best_of" in fields:
        return

    async def test(api: Api) -> None:
        for ids_too in (True, False):
            response = await api.complete(logprobs=0, max_tokens=100, return_token_ids=ids_too, stream=stream, **fields)
            bodies = events(response.text)[:-1] if stream else [response.json()]
            parts = [choice for body in bodies for choice in body["choices"] if choice["index"] == 0]
            tokens = [token for part in parts for token in part["logprobs"]["tokens"]]
            text = "".join(part["text"] for part in parts)
            if not ids_too:
                assert len(tokens) == len(text.encode())
                continue
            ids = [i for part in parts for i in part["token_ids"]]
            assert [api.engine.tokenizer.token_text(i) for i in ids] == tokens
            assert len(ids) > len(text.encode()) and (ids[-1] == IM_END) == ("stop" not in fields)

    run(test)
