"""Everything that is wrong with a request is a 4xx in one format that names the field, streamed or not."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_harness import HELLO, Api, api, error_of, run

from octavo.config import ServerConfig

NUMERIC = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
    "n", "best_of", "max_tokens", "max_completion_tokens", "min_tokens", "top_logprobs", "prompt_logprobs", "priority",
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": [1]}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 10**9}, "best_of"),
        ({"seed": 2**64}, "seed"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 2}, "min_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": "a\0"}, "stop"),
        ({"stop_token_ids": [259]}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a\0"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "messages"),
        ({"stream_options": {"include_usage": True}, "stream": False}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": [1]}}, "chat_template_kwargs"),
        ({"cache_salt": "x" * 300}, "cache_salt"),
        ({"model": 5}, "model"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, Any], param: str) -> None:
    async def test(api: Api) -> None:
        for stream in (True, False) if "stream" not in fields else (fields["stream"],):
            error = error_of(await api.chat(**{**fields, "stream": stream}), 400)
            assert error["param"] == param, error
            assert error["type"] == "invalid_request_error"

    run(test)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", "{{ 1 }}"),
        ("modalities", ["audio"]),
        ("echo", True),
        ("use_beam_search", True),
        ("logits_processors", ["x"]),
    ],
)
def test_known_fields_that_are_not_served_are_refused_by_name(name: str, value: Any) -> None:
    async def test(api: Api) -> None:
        error = error_of(await api.chat(**{name: value}, stream=True), 400)
        assert error["param"] == name and error["code"] == "unsupported_parameter"

    run(test)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (b"NaN", "temperature"),
        (b"Infinity", "temperature"),
        (b"-Infinity", "temperature"),
        (b"1e999", "temperature"),
        (b"9" * 5000, "temperature"),
        (b"0x10", "temperature"),
        (b'"\\ud800"', "temperature"),
        (b'"\\udc00 tail"', "temperature"),
        (b'"\xed\xa0\x80"', "temperature"),
        (b'"a\x00b"', "temperature"),
        (b"[" * 100_000, "temperature"),
        (b'{"a":' * 100_000, "temperature"),
        (b"[" * 100_000 + b"]" * 100_000, "temperature"),
    ],
)
def test_what_is_no_json_names_the_field_it_broke_in(value: bytes, param: str) -> None:
    async def test(api: Api) -> None:
        body = b'{"messages": [{"role": "user", "content": "{["}], "temperature": ' + value + b', "max_tokens": 1}'
        assert error_of(await api.raw(body), 400)["param"] == param

    run(test)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b"\xef\xbb\xbf{}"])
def test_bodies_that_are_no_json_object(body: bytes) -> None:
    async def test(api: Api) -> None:
        assert error_of(await api.raw(body), 400)["code"] == "invalid_json"

    run(test)


def test_deep_and_long_values_of_unknown_fields_are_harmless() -> None:
    async def test(api: Api) -> None:
        start = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"unknown":'
        assert (await api.raw(start + b"9" * 5000 + b"}")).status_code == 200
        error = error_of(await api.raw(start + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400)
        assert error["param"] == "unknown" and error["code"] == "invalid_json"

    run(test)


def test_every_number_is_taken_or_refused() -> None:
    async def test(api: Api) -> None:
        values = [-1, 0, 2**31, 2**63, 2**64, 1e308, -1e308, 0.5, "1", True, None, [], {}]
        for name in NUMERIC:
            for value in values:
                response = await api.chat(**{"max_tokens": 1, name: value})
                assert response.status_code == 200 or error_of(response, 400)["param"] == name, (name, value)

    run(test)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (*NUMERIC, "stop", "logit_bias", "bad_words", "messages", "stream", "stream_options", "model", "tools", "echo",
          "response_format", "chat_template_kwargs", "allowed_token_ids", "logprobs", "prompt", "suffix")  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fields=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=3), chat=st.booleans())
def test_no_body_makes_a_5xx(fields: dict[str, Any], chat: bool) -> None:
    async def test(api: Api) -> None:
        response = await (api.chat if chat else api.complete)(**{"max_tokens": 2, **fields})
        if response.status_code != 200:
            error_of(response, response.status_code)
            assert response.status_code in (400, 404), response.text

    run(test)


def test_fan_out_is_refused_before_it_is_made() -> None:
    async def test(api: Api) -> None:
        for fields in (
            {"n": 10**9}, {"best_of": 10**9}, {"top_logprobs": 10**6, "logprobs": True}, {"stop": ["s"] * 100_000},
            {"logit_bias": {str(i): 1 for i in range(100_000)}}, {"bad_words": ["b"] * 100_000},
            {"messages": HELLO * 50_000}, {"stop_token_ids": [1] * 10**6},
        ):  # fmt: skip
            started = time.process_time()
            error_of(await api.chat(**fields), 400)
            assert time.process_time() - started < 20  # milliseconds, or never: not a measure of speed
        error_of(await api.complete(prompt=["p"] * 10**5), 400)

    run(test)


def test_context_length_error_has_both_numbers() -> None:
    async def test(api: Api) -> None:
        error = error_of(await api.complete(prompt="x" * 300), 400)
        assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"
        assert "100" in error["message"]
        error = error_of(await api.complete(prompt=[65] * 300), 400)
        assert "300" in error["message"] and "100" in error["message"]

    run(test, max_model_len=100)


def test_max_tokens_beyond_the_context_is_clamped() -> None:
    async def test(api: Api) -> None:
        body = (await api.complete(prompt="x" * 90, max_tokens=10**6, ignore_eos=True)).json()
        assert body["usage"]["completion_tokens"] == 10 and body["choices"][0]["finish_reason"] == "length"

    run(test, max_model_len=100)


def test_model_names() -> None:
    async def test(api: Api) -> None:
        for call in (api.chat, api.complete):
            error = error_of(await call(model="gpt-4", stream=True), 404)
            assert error["code"] == "model_not_found" and error["param"] == "model"
        error_of(await api.http.get("/v1/models/gpt-4"), 404)
        assert (await api.http.get("/v1/models/org/name")).json()["id"] == "org/name"
        assert (await api.http.get("/v1/models")).json()["data"][0]["id"] == "org/name"

    run(test, model="org/name")


def test_routes_methods_and_media_types() -> None:
    async def test(api: Api) -> None:
        for path in ("/nope", "/v1", "/v1/chat/completions/", "//v1/models", "/V1/models"):
            assert error_of(await api.http.get("http://test" + path), 404)["code"] == "not_found"
        for path in ("/models", "/models/fake-model"):
            assert (await api.http.get(path)).json() == (await api.http.get("/v1" + path)).json()
        for path in ("/v1/completions", "/completions", "/v1/embeddings", "/tokenize"):
            response = await api.http.get(path)
            assert error_of(response, 405)["code"] == "method_not_allowed" and response.headers["allow"] == "POST"
        response = await api.http.post("/v1/models")
        assert error_of(response, 405) and set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}
        body = b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}'
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"):
            response = await api.raw(body, **{"content-type": kind})
            assert error_of(response, 415)["code"] == "unsupported_media_type"
        assert error_of(await api.raw(body, **{"content-encoding": "gzip"}), 415)
        for kind in ("application/json", "application/json; charset=UTF-8", "application/vnd.api+json"):
            assert (await api.raw(body, **{"content-type": kind})).status_code == 200
        request = httpx.Request("POST", "http://test/v1/chat/completions", content=body)
        assert error_of(await api.http.send(request), 415)["code"] == "unsupported_media_type"

    run(test)


def test_request_id_is_echoed_when_short_and_printable() -> None:
    async def test(api: Api) -> None:
        async def sent(value: bytes, path: str = "/health") -> str:
            response = await api.http.get(path, headers=[(b"x-request-id", value)])
            return str(response.headers["x-request-id"])

        assert await sent(b"my-id.1") == "my-id.1"
        assert await sent(b"my-id.1", "/nope") == "my-id.1"
        for value in (b"x" * 129, b"a b", b"\xe9", b"a\tb", b""):
            assert await sent(value) not in (value.decode("latin-1"), "")
        ids = {(await api.http.get("/health")).headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3
        first = await api.raw(b'{"messages":[{"role":"user","content":"x"}]}', **{"x-request-id": "same"})
        second = await api.raw(b'{"messages":[{"role":"user","content":"x"}]}', **{"x-request-id": "same"})
        assert first.json()["id"] != second.json()["id"] and "same" not in first.json()["id"]

    run(test)


def test_bodies_over_the_limit_are_refused_unread() -> None:
    async def test(api: Api) -> None:
        response = await api.raw(b" " * 2000)
        assert error_of(response, 413)["code"] == "content_too_large"
        taken = 0

        async def chunks() -> Any:
            nonlocal taken
            for _ in range(10):
                taken += 1
                yield b" " * 300

        assert error_of(await api.raw(chunks()), 413)["code"] == "content_too_large"  # type: ignore[arg-type]
        response = await api.raw(b"{}", **{"content-length": "99999999999999999999"})
        assert error_of(response, 413)["code"] == "content_too_large"
        assert error_of(await api.raw(b'{"messages": 1}' + b" " * 900), 400)["param"] == "messages"

    run(test, config=ServerConfig(max_body_size="1KiB"))


def test_queue_full_is_429_with_retry_after() -> None:
    async def main() -> None:
        async with api(step_delay=0.02, max_num_seqs=1, max_queued_requests=1) as found:
            tasks = [asyncio.create_task(found.chat(max_tokens=20)) for _ in range(2)]
            await asyncio.sleep(0.1)
            for stream in (False, True):
                response = await found.chat(stream=stream)
                assert error_of(response, 429)["code"] == "queue_full"
                assert int(response.headers["retry-after"]) >= 1
            assert all(r.status_code == 200 for r in await asyncio.gather(*tasks))

    asyncio.run(main())


def test_failure_of_ours_is_a_plain_500_with_an_id(caplog: pytest.LogCaptureFixture) -> None:
    async def test(api: Api) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise RuntimeError("secret at 0x7f0011223344 in /etc/passwd")

        api.engine.generate = broken  # type: ignore[method-assign]
        error = error_of(await api.chat(), 500)
        assert error["code"] == "internal_error" and "secret" not in error["message"]
        error_of(await api.chat(stream=True), 500)

    run(test)
    assert "secret" in caplog.text


def test_messages_hold_no_path_and_no_address() -> None:
    from octavo.server.core.errors import clean

    assert clean("bad tensor in /home/me/model.gguf at 0x7ffee4c0ffee") == "bad tensor in … at …"
    assert clean("max 1/2, and/or see /docs; org/name; 0x10") == "max 1/2, and/or see /docs; org/name; 0x10"


def test_null_stands_for_a_field_left_out() -> None:
    async def test(api: Api) -> None:
        assert (await api.raw(b'{"messages":[{"role":"user","content":"x"}],"n":null,"seed":null}')).status_code == 200
        for body, param in (
            (b'{"messages":[{"role":"user","content":"x"}],"n":null,"top_p":"x"}', "top_p"),
            (b'{"n":null,"messages":[{"role":null}]}', "messages[0].role"),
            (b'{"n":null,"messages":[{"role":"user"}]', "messages"),
            (b'{"n":null}', "messages"),
        ):
            assert error_of(await api.raw(body), 400)["param"] in (param, "n")

    run(test)


def test_errors_far_into_a_long_body_come_quickly_and_without_a_name() -> None:
    async def test(api: Api) -> None:
        body = b'{"pad": "' + b"x" * (2 << 20) + b'", "temperature": NaN}'
        assert error_of(await api.raw(body), 400)["param"] is None
        body = b'{"messages": [{"role": "user", "content": "\xff"}]}'
        assert error_of(await api.raw(body), 400)["code"] == "invalid_json"

    run(test)
