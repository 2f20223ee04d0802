"""T-INT, T-NAN, T-FANOUT, T-EMPTY, T-LEAK: single fields with values that no honest client sends, on every route."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import httpx
import msgspec
import pytest
from msgspec import inspect
from patience import PATIENCE_S
from server_harness import Api, run
from victim import Growth, Pulse, Victim, victim

from octavo.server.routes import ENDPOINTS, Endpoint

POSTS = [endpoint for endpoint in ENDPOINTS if endpoint.method == "POST" and endpoint.asked is not None]
ODD_NUMBERS = ["-1", "0", "-0", "0.5", str(2**31), str(2**63), str(2**64), "1e308", "-1e308", '"1"', "true", "null",
               "[]", "{}", "[[1]]", '""', "9" * 400]  # fmt: skip
SOME_MESSAGES = {"model": "fake-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
NO_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "nan", "inf", "+1", "01", ".5", "1.", "0x10"]
LEAKS = re.compile(r"0x[0-9a-f]{6,}|Traceback|/octavo/|site-packages|\.py\b|File \"|object at|msgspec|Struct")


def kinds(kind: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        yield from kinds(kind.type)
    elif isinstance(kind, inspect.UnionType):
        for part in kind.types:
            yield from kinds(part)
    else:
        yield kind


def fields(endpoint: Endpoint) -> list[tuple[str, set[type]]]:
    info = inspect.type_info(endpoint.asked)
    assert isinstance(info, inspect.StructType)
    return [(field.encode_name, {type(kind) for kind in kinds(field.type)}) for field in info.fields]


def numbers(endpoint: Endpoint) -> list[str]:
    return [name for name, found in fields(endpoint) if found & {inspect.IntType, inspect.FloatType}]


def with_field(endpoint: Endpoint, name: str, value: str) -> bytes:
    """The endpoint's example, this field as the text says."""
    body = {"max_tokens": 4, **(endpoint.example or SOME_MESSAGES)}
    body.pop(name, None)
    parts = [f"{json.dumps(key)}:{json.dumps(item)}" for key, item in body.items()]
    return ("{" + ",".join([*parts, f"{json.dumps(name)}:{value}"]) + "}").encode()


def checked(response: httpx.Response, what: str) -> int:
    """200 or 400, and nothing of the machine in it."""
    assert response.status_code in (200, 400), f"{what}: {response.status_code} {response.text}"
    if response.status_code == 400:
        body = response.json()
        assert body["error"]["message"], what
        assert not LEAKS.search(response.text), response.text
    return response.status_code


@pytest.mark.long
@pytest.mark.parametrize("endpoint", POSTS, ids=lambda endpoint: endpoint.path)
def test_int_every_number_with_every_odd_value(endpoint: Endpoint) -> None:
    """T-INT: 200 or 400, never 5xx, streamed or not."""

    async def test(api: Api) -> None:
        for name in numbers(endpoint):
            for value in ODD_NUMBERS:
                for more in ("", ',"stream":true'):
                    if more and not any(field == "stream" for field, _ in fields(endpoint)):
                        continue
                    body = with_field(endpoint, name, value + more)
                    what = f"{name}={value}{more}"
                    try:
                        response = await asyncio.wait_for(api.raw(body, endpoint.path), PATIENCE_S)
                    except asyncio.TimeoutError:
                        raise AssertionError(f"{what} is not answered") from None
                    checked(response, what)

    run(test)


@pytest.mark.parametrize("endpoint", POSTS, ids=lambda endpoint: endpoint.path)
def test_nan_and_infinity_are_refused(endpoint: Endpoint) -> None:
    """T-NAN"""

    async def test(api: Api) -> None:
        for name in [*numbers(endpoint), "an_unknown_field"]:
            for value in NO_NUMBERS:
                if name == "an_unknown_field" and value in ("1e999", "-1e999"):
                    continue  # JSON all the same; nobody reads it
                response = await api.raw(with_field(endpoint, name, value), endpoint.path)
                assert checked(response, f"{name}={value}") == 400
                error = response.json()["error"]
                assert error.get("param") in (name, None) or endpoint.path.startswith("/v1/messages")
                if value in ("NaN", "Infinity", "1e999"):
                    assert "finite" in error["message"], error

    run(test)


@pytest.mark.parametrize("endpoint", POSTS, ids=lambda endpoint: endpoint.path)
def test_every_field_with_every_wrong_type(endpoint: Endpoint) -> None:
    """T-LEAK: the errors of all fields say nothing of the machine."""

    async def test(api: Api) -> None:
        for name, _ in fields(endpoint):
            for value in (
                "-1",
                '"\\u0000"',
                '"x"',
                "[]",
                "{}",
                "[null]",
                '[{"a":1}]',
                "true",
                "1.5",
                '{"type":"x"}',
                "[[]]",
            ):
                response = await api.raw(with_field(endpoint, name, value), endpoint.path)
                if response.status_code != 404:  # another model's name, a response that is not there
                    checked(response, f"{name}={value}")
                assert not LEAKS.search(response.text), response.text

    run(test)


@pytest.mark.parametrize(
    "path,body",
    [
        ("/v1/completions", '{"prompt":""}'),
        ("/v1/completions", '{"prompt":[]}'),
        ("/v1/completions", '{"prompt":[[]]}'),
        ("/v1/completions", '{"prompt":[""]}'),
        ("/v1/completions", '{"prompt":["a",""]}'),
        ("/v1/completions", '{"prompt":[[1],[]]}'),
        ("/v1/completions", '{"prompt":null}'),
        ("/v1/completions", "{}"),
        ("/v1/completions", ""),
        ("/v1/completions", "null"),
        ("/v1/chat/completions", '{"messages":[]}'),
        ("/v1/chat/completions", '{"messages":null}'),
        ("/v1/chat/completions", '{"messages":[{}]}'),
        ("/v1/chat/completions", '{"messages":[{"role":"user"}]}'),
        ("/v1/chat/completions", '{"messages":[{"role":"","content":""}]}'),
        ("/v1/embeddings", '{"input":""}'),
        ("/v1/embeddings", '{"input":[]}'),
        ("/v1/embeddings", '{"input":[[]]}'),
        ("/v1/responses", '{"input":[]}'),
        ("/v1/messages", '{"messages":[],"max_tokens":1}'),
    ],
)
def test_empty_prompts_are_refused(path: str, body: str) -> None:
    """T-EMPTY"""
    if path not in {endpoint.path for endpoint in POSTS}:
        pytest.skip("there is no such route")

    async def test(api: Api) -> None:
        assert checked(await api.raw(body.encode(), path), body) == 400
        assert (await api.chat(max_tokens=2)).status_code == 200

    run(test)


@pytest.mark.parametrize("content", ['""', "[]", '[{"type":"text","text":""}]'])
def test_empty_content_is_a_message_all_the_same(content: str) -> None:
    """T-EMPTY: the template still writes something."""

    async def test(api: Api) -> None:
        for path in ("/v1/chat/completions", "/v1/messages"):
            if path in {endpoint.path for endpoint in POSTS}:
                body = f'{{"messages":[{{"role":"user","content":{content}}}],"max_tokens":2}}'
                checked(await api.raw(body.encode(), path), content)

    run(test)


@pytest.fixture(scope="module")
def server() -> Iterator[Victim]:
    with victim() as found:
        yield found


def many(item: bytes, count: int, start: bytes = b"[", end: bytes = b"]") -> bytes:
    return start + b",".join([item] * count) + end


MILLION = 10**6
FAN_OUT = {
    "n": b'{"prompt":"a","n":1000000000}',
    "best_of": b'{"prompt":"a","best_of":1000000000}',
    "n of prompts": b'{"prompt":%b,"n":128}' % many(b'"a"', 1000),
    "logprobs": b'{"prompt":"a","logprobs":1000000}',
    "prompt_logprobs": b'{"prompt":"a","prompt_logprobs":1000000}',
    "prompt": b'{"prompt":%b}' % many(b'"a"', MILLION),
    "prompt ids": b'{"prompt":%b}' % many(b"1", 5 * MILLION),
    "prompt ids below the bound": b'{"prompt":%b}' % many(b"1", 990_000),
    "prompt lists": b'{"prompt":%b}' % many(b"[1]", MILLION),
    "prompts": b'{"prompt":%b}' % many(b'"a"', 1025),
    "stop": b'{"prompt":"a","stop":%b}' % many(b'"x"', 100_000),
    "stop_token_ids": b'{"prompt":"a","stop_token_ids":%b}' % many(b"1", 100_000),
    "bad_words": b'{"prompt":"a","bad_words":%b}' % many(b'"x"', 100_000),
    "logit_bias": b'{"prompt":"a","logit_bias":{%b}}' % b",".join(b'"%d":1' % i for i in range(MILLION)),
    "logit_bias below the bound": b'{"prompt":"a","logit_bias":{%b}}' % b",".join(b'"%d":1' % i for i in range(90_000)),
    "a long text": b'{"prompt":"%b"}' % (b"a " * (15 * MILLION)),
    "a long text of escapes": b'{"prompt":"%b"}' % (b'\\"' * (15 * MILLION)),
    "a long text that breaks off": b'{"prompt":"%b' % (b"a" * (30 * MILLION)),
    "an unknown field": b'{"prompt":"","x":%b}' % many(b'""', 5 * MILLION),
    "depth": b'{"prompt":' + b"[" * (10 * MILLION),
}


@pytest.mark.parametrize("name", FAN_OUT)
def test_fanout_is_refused_at_once_and_streams_keep_their_pace(server: Victim, name: str) -> None:
    """T-FANOUT. In seconds of the server's own computing, whose event loop has one thread."""
    with Pulse(server) as pulse, Growth(server) as growth:
        started = server.processor_time()
        status, _, answer = server.ask("POST", "/v1/completions", FAN_OUT[name])
        seconds = server.processor_time() - started
    assert status == 400, (status, answer[:300])
    error = json.loads(answer)["error"]
    assert error["message"] and not LEAKS.search(answer.decode())
    assert (error["param"] or "x").partition("[")[0] in (*name.split(), "prompt", "x"), error
    assert seconds < 5 and pulse.worst < 1 and growth.bytes < 200 << 20
    assert pulse.count > 0
    server.unharmed()


def test_fanout_of_messages(server: Victim) -> None:
    """T-FANOUT"""
    body = b'{"messages":%b}' % many(b'{"role":"user","content":"a"}', 200_000)
    with Pulse(server) as pulse:
        status, _, answer = server.ask("POST", "/v1/chat/completions", body)
    assert status == 400 and json.loads(answer)["error"]["param"] == "messages" and pulse.worst < 1
    server.unharmed()


def test_structs_of_all_posts_are_known_here() -> None:
    """Every POST route is one of those above, and has an example to start from."""
    bare = {endpoint.path for endpoint in ENDPOINTS if endpoint.method == "POST" and endpoint.asked is None}
    assert bare <= {"/v1/responses/{response_id}/cancel"}
    for endpoint in POSTS:
        msgspec.convert(endpoint.example or SOME_MESSAGES, endpoint.asked)
