"""POST /v1/chat/completions: answers, chunks, fields."""

from __future__ import annotations

import pytest
from server_harness import HELLO, TEXT, Api, error_of, events, run


def test_answer_has_the_shape_of_openai() -> None:
    async def test(api: Api) -> None:
        body = (await api.chat()).json()
        assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion"
        assert body["model"] == "fake-model" and isinstance(body["created"], int)
        (choice,) = body["choices"]
        assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
        assert choice["finish_reason"] == "stop" and choice["index"] == 0 and choice["logprobs"] is None
        usage = body["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
        assert set(usage["performance"]) == {
            "prefill_ms", "decode_ms", "decode_iterations", "tokens_per_second", "time_to_first_token_ms", "queue_ms",
        }  # fmt: skip

    run(test)


def test_stream_is_the_same_answer_in_chunks() -> None:
    async def test(api: Api) -> None:
        whole = (await api.chat()).json()
        response = await api.chat(stream=True, stream_options={"include_usage": True})
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        *chunks, last, done = events(response.text)
        assert done == "[DONE]"
        assert len({(c["id"], c["created"], c["model"], c["object"]) for c in [*chunks, last]}) == 1
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert chunks[-1]["choices"][0]["delta"] == {}
        assert all(c["choices"][0]["delta"]["content"] for c in chunks[1:-1])
        reasons = [c["choices"][0]["finish_reason"] for c in chunks]
        assert reasons == [None] * (len(chunks) - 1) + ["stop"]
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == TEXT
        assert "\ufffd" not in response.text
        assert all(c["usage"] is None for c in chunks) and last["choices"] == []
        for key in ("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"):
            assert last["usage"][key] == whole["usage"][key]
        assert set(last["usage"]) == set(whole["usage"])

    run(test)


def test_without_stream_options_no_chunk_has_usage() -> None:
    async def test(api: Api) -> None:
        for options in ({}, {"stream_options": {"include_usage": False}}, {"stream_options": None}):
            assert all("usage" not in c for c in events((await api.chat(stream=True, **options)).text)[:-1])

    run(test)


def test_continuous_usage_counts_up_to_the_last() -> None:
    async def test(api: Api) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        *chunks, last, _ = events((await api.chat(stream=True, stream_options=options)).text)
        counts = [c["usage"]["completion_tokens"] for c in chunks]
        assert counts == sorted(counts) and counts[-1] == last["usage"]["completion_tokens"]
        assert {c["usage"]["prompt_tokens"] for c in chunks} == {last["usage"]["prompt_tokens"]}

    run(test)


def test_n_choices_streamed_one_per_chunk_and_equal_to_the_plain_ones() -> None:
    async def test(api: Api) -> None:
        fields = {"n": 3, "seed": 5, "temperature": 1, "max_tokens": 20}
        whole = (await api.chat(**fields)).json()
        assert [c["index"] for c in whole["choices"]] == [0, 1, 2]
        assert len({c["message"]["content"] for c in whole["choices"]}) == 3
        *chunks, last, _ = events((await api.chat(**fields, stream=True, stream_options={"include_usage": True})).text)
        texts = {0: "", 1: "", 2: ""}
        roles, ends = [], []
        for chunk in chunks:
            (choice,) = chunk["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
            roles += [choice["index"]] if "role" in choice["delta"] else []
            ends += [choice["index"]] if choice["finish_reason"] else []
        assert texts == {c["index"]: c["message"]["content"] for c in whole["choices"]}
        assert sorted(roles) == sorted(ends) == [0, 1, 2]
        assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 60
        assert last["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]

    run(test)


@pytest.mark.parametrize("include", [False, True])
def test_stop_string_is_held_back_and_reported(include: bool) -> None:
    async def test(api: Api) -> None:
        fields = {"stop": ["fake eng", "zzz"], "include_stop_str_in_output": include}
        expected = "Hello! I am a " + ("fake eng" if include else "")
        choice = (await api.chat(**fields)).json()["choices"][0]
        assert choice["message"]["content"] == expected
        assert choice["finish_reason"] == "stop" and choice["stop_reason"] == "fake eng"
        chunks = events((await api.chat(**fields, stream=True)).text)[:-1]
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == expected
        assert chunks[-1]["choices"][0]["stop_reason"] == "fake eng"

    run(test)


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    async def test(api: Api) -> None:
        body = (await api.chat(max_tokens=9, max_completion_tokens=4)).json()
        assert body["usage"]["completion_tokens"] == 4
        assert body["choices"][0]["finish_reason"] == "length"
        assert (await api.chat(max_completion_tokens=3)).json()["choices"][0]["message"]["content"] == "Hel"
        assert (await api.chat(max_tokens=0)).json()["choices"][0]["message"]["content"] == ""

    run(test)


def test_logprobs_join_to_the_content_streamed_and_not() -> None:
    async def test(api: Api) -> None:
        fields = {"logprobs": True, "top_logprobs": 2}
        whole = (await api.chat(**fields)).json()["choices"][0]
        entries = whole["logprobs"]["content"]
        assert whole["logprobs"]["refusal"] is None
        assert b"".join(bytes(e["bytes"]) for e in entries).decode() == whole["message"]["content"]
        assert all(len(e["top_logprobs"]) == 2 and e["logprob"] == -0.25 for e in entries)
        assert set(entries[0]) == {"token", "logprob", "bytes", "top_logprobs"}
        assert set(entries[0]["top_logprobs"][0]) == {"token", "logprob", "bytes"}
        chunks = events((await api.chat(**fields, stream=True)).text)[:-1]
        streamed = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
        assert streamed == entries
        bare = (await api.chat(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
        assert all(e["top_logprobs"] == [] for e in bare)

    run(test)


def test_logprobs_end_before_a_stop_string() -> None:
    async def test(api: Api) -> None:
        choice = (await api.chat(logprobs=True, stop="am")).json()["choices"][0]
        joined = "".join(e["token"] for e in choice["logprobs"]["content"])
        assert joined == choice["message"]["content"] == "Hello! I "

    run(test)


def test_prompt_logprobs_have_one_entry_per_prompt_token() -> None:
    async def test(api: Api) -> None:
        body = (await api.chat(prompt_logprobs=1, max_tokens=1)).json()
        found = body["prompt_logprobs"]
        assert len(found) == body["usage"]["prompt_tokens"] and found[0] is None
        ((token_id, entry),) = found[-1].items()
        assert int(token_id) == 10 and entry == {"logprob": -0.25, "rank": 1, "decoded_token": "\n"}
        assert error_of(await api.chat(prompt_logprobs=1, stream=True), 400)["param"] == "prompt_logprobs"

    run(test)


def test_message_parts_roles_and_continuation_reach_the_template() -> None:
    async def test(api: Api) -> None:
        async def tokens(messages: list[object], **fields: object) -> str:
            ids = (await api.post("/tokenize", messages=messages, **fields)).json()["tokens"]
            return (await api.post("/detokenize", tokens=ids)).json()["prompt"]

        parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
        assert await tokens(parts) == "<|im_start|>user\na b<|im_end|>\n<|im_start|>assistant\n"
        assert await tokens(parts, add_generation_prompt=False) == "<|im_start|>user\na b<|im_end|>\n"
        assert (await tokens([{"role": "developer", "content": "x"}])).startswith("<|im_start|>system\nx")
        more = [*HELLO, {"role": "assistant", "content": "Sure, "}]
        assert (await tokens(more, continue_final_message=True)).endswith("<|im_start|>assistant\nSure, ")
        assert (await api.chat(messages=more, continue_final_message=True)).status_code == 200
        assert (await api.chat(chat_template_kwargs={"enable_thinking": False})).status_code == 200

    run(test)


def test_special_tokens_in_a_message_stay_text() -> None:
    async def test(api: Api) -> None:
        messages = [{"role": "user", "content": "<|im_end|>"}]
        plain = (await api.post("/tokenize", messages=messages)).json()["tokens"]
        assert plain.count(257) == 1

    run(test)


def test_fields_that_change_nothing_are_accepted() -> None:
    async def test(api: Api) -> None:
        for fields in (
            {"tool_choice": "none"}, {"tools": []}, {"response_format": {"type": "text"}}, {"unknown": [1, {"a": 2}]},
            {"user": "me", "metadata": {"a": "b"}, "store": False}, {"model": "fake-model"}, {"model": None},
            {"frequency_penalty": None, "n": None, "stop": None, "stream": None, "logprobs": None, "logit_bias": {}},
            {"parallel_tool_calls": True}, {"modalities": ["text"]}, {"cache_salt": "s", "session_id": "x"},
            {"logit_bias": {"65": -100}, "bad_words": ["no"], "priority": 3, "stop_token_ids": [7], "min_p": 0.1},
            {"best_of": 2, "max_tokens": 2}, {"stop": []}, {"reasoning_effort": "low"},
        ):  # fmt: skip
            response = await api.chat(**fields)
            assert response.status_code == 200, (fields, response.text)

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_on_request(stream: bool) -> None:
    async def test(api: Api) -> None:
        asked = {"return_token_ids": True, "return_tokens_as_token_ids": True, "logprobs": True, "top_logprobs": 1}
        response = await api.chat(**asked, n=2, max_tokens=100, stream=stream)
        bodies = events(response.text)[:-1] if stream else [response.json()]
        given = [body.get("prompt_token_ids") for body in bodies]
        assert api.engine.tokenizer.decode(given[0], skip_special_tokens=False).endswith("<|im_start|>assistant\n")
        assert given[1:] == [None] * (len(bodies) - 1)
        for index in range(2):
            parts = [choice for body in bodies for choice in body["choices"] if choice["index"] == index]
            ids = [i for part in parts for i in part.get("token_ids", ())]
            assert ids == [*TEXT.encode(), 257]
            entries = [entry for part in parts for entry in (part["logprobs"] or {"content": ()})["content"]]
            assert [entry["token"] for entry in entries] == [f"token_id:{i}" for i in ids]
            assert all(top["token"].startswith("token_id:") for entry in entries for top in entry["top_logprobs"])
            assert all(
                len(part["token_ids"]) == len(part["logprobs"]["content"]) for part in parts if part.get("token_ids")
            )
        plain = (await api.chat(max_tokens=3)).json()
        assert "prompt_token_ids" not in plain and "token_ids" not in plain["choices"][0]

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_hold_those_that_show_nothing(stream: bool) -> None:
    async def test(api: Api) -> None:
        response = await api.chat(return_token_ids=True, stop="fake", max_tokens=100, stream=stream)
        bodies = events(response.text)[:-1] if stream else [response.json()]
        ids = [i for body in bodies for choice in body["choices"] for i in choice.get("token_ids", ())]
        assert bytes(ids).decode() == TEXT[: TEXT.index("fake") + 4]

    run(test)
