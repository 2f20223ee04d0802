"""T-COST: every field of every route at its largest, with n = 128: the event loop goes on, and memory stays.

Fields come from the structs of the routes, so a new one is tried here without being named; one without a bound fails.
What a body itself weighs, as bytes and as text, is its sender's affair and the body limit's; everything beyond that is
what the server makes of it. Time is the processor's: how much the whole process worked between two turns of its loop.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from msgspec import inspect
from test_http_fields import POSTS, kinds
from victim import MIB, Growth, Victim, victim

from octavo.config import ServerConfig
from octavo.server.http.endpoint import Endpoint

pytestmark = pytest.mark.long

MAX_LAG_S = 0.1
MAX_GROWTH = 64 * MIB
LARGE = 30 * MIB
MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Victim]:
    with victim(ServerConfig(drain_timeout=1, body_timeout=120), is_traced=False) as found:
        yield found


def texts(size: int) -> Iterator[bytes]:
    yield b'"' + b"a" * size + b'"'
    yield b'"' + b"hello world " * (size // 12) + b'"'
    yield b'"' + b'\\"' * (size // 2) + b'"'


def values(kind: inspect.Type) -> Iterator[bytes]:
    """The largest values of a kind, as JSON."""
    if isinstance(kind, inspect.StrType | inspect.AnyType | inspect.RawType):
        yield from texts(LARGE)
    elif isinstance(kind, inspect.ListType):
        inner = {type(each) for each in kinds(kind.item_type)}
        if inspect.IntType in inner:
            yield b"[" + b",".join(b"%d" % (i % 300) for i in range(900_000)) + b"]"
        if inspect.StrType in inner:
            yield b"[" + next(texts(LARGE)) + b"]"
            yield b"[" + b",".join([b'"' + b"a" * 2000 + b'"'] * 15_000) + b"]"
            yield b"[" + b",".join(b'"w%d"' % i for i in range(99_000)) + b"]"
        if inner & {inspect.DictType, inspect.StructType}:
            yield b"[" + b",".join([b'{"role":"user","content":"a","type":"text","text":"b"}'] * 16_000) + b"]"
            yield b'[{"role":"user","type":"text","content":' + next(texts(LARGE)) + b"}]"
    elif isinstance(kind, inspect.DictType | inspect.StructType):
        yield b'{"type":"object","x":' + next(texts(LARGE)) + b"}"
        yield b"{" + b",".join(b'"%d":1' % i for i in range(99_000)) + b"}"


def bodies(endpoint: Endpoint) -> Iterator[tuple[str, bytes]]:
    """→ the field, the body"""
    info = inspect.type_info(endpoint.asked)
    assert isinstance(info, inspect.StructType)
    names = {field.encode_name for field in info.fields}
    base = {**(endpoint.example or MESSAGES)}
    if "max_tokens" in names:
        base["max_tokens"] = 2
    if "n" in names:
        base["n"] = 128
    for field in info.fields:
        rest = {key: value for key, value in base.items() if key != field.encode_name}
        head = json.dumps(rest)[:-1] + (", " if rest else "")
        for kind in kinds(field.type):
            for value in values(kind):
                yield field.encode_name, f'{head}"{field.encode_name}": '.encode() + value + b"}"


def cost(server: Victim, method: str, path: str, body: bytes | None) -> tuple[int, float, int]:
    """→ status, seconds that the loop stood still at most, bytes beyond the body's own. What it costs is the least of
    some times: a busy neighbour makes the same work take longer, and nothing makes it take less."""
    for last in (*[False] * 7, True):
        server.lag()
        with Growth(server) as growth:
            status, _, _ = server.ask(method, path, body, timeout=120)
        lag = server.lag()
        if lag <= MAX_LAG_S or last:
            break
    return status, lag, growth.bytes - 2 * len(body or b"")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("endpoint", POSTS, ids=lambda endpoint: endpoint.path)
def test_every_field_at_its_largest(server: Victim, endpoint: Endpoint) -> None:
    wrong = []
    for field, body in bodies(endpoint):
        status, lag, grown = cost(server, endpoint.method, endpoint.path, body)
        if status not in (200, 400, 404) or lag > MAX_LAG_S or grown > MAX_GROWTH:
            wrong.append(f"{field}={body[-60:]!r}: {status}, {lag * 1e3:.0f} ms, {grown >> 20} MiB")
    assert not wrong, "\n".join(wrong)
    server.unharmed()


RESPONSES, COMPLETIONS = "/v1/responses", "/v1/completions"
USER = {"role": "user", "content": "hi"}


def test_references_are_charged(server: Victim) -> None:
    stored = {"type": "compaction", "id": "z", "x": "A" * 7_000_000}
    body = json.dumps({"input": [USER, stored], "max_output_tokens": 1}).encode()
    assert server.ask("POST", RESPONSES, body)[0] == 200
    for count, expected in ((1, 200), (150, 400), (5000, 400)):
        body = json.dumps({"input": [USER] + [{"id": "z"}] * count, "max_output_tokens": 1, "store": False}).encode()
        status, lag, grown = cost(server, "POST", RESPONSES, body)
        assert (status, lag < MAX_LAG_S, grown < MAX_GROWTH) == (expected, True, True), (count, lag, grown >> 20)


def test_listing_what_is_stored_decodes_nothing(server: Victim) -> None:
    stored = {"type": "compaction", "id": "y", "x": "A" * 7_000_000}
    body = json.dumps({"input": [USER, stored], "max_output_tokens": 1}).encode()
    found = json.loads(server.ask("POST", RESPONSES, body)[2])
    for _ in range(5):
        status, lag, grown = cost(server, "GET", f"{RESPONSES}/{found['id']}/input_items", None)
        assert status == 200 and lag < MAX_LAG_S and grown < MAX_GROWTH


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 128])
def test_answers_are_charged_before_they_are_made(server: Victim, path: str, stream: bool, n: int) -> None:
    """Echo and twenty log-probabilities of a prompt that fills the context, 128 times: 141 MB once."""
    long = list(range(300)) * 6
    asked = {"prompt": long, "echo": True, "logprobs": 5} if path == COMPLETIONS else {**MESSAGES, "logprobs": True}
    if path != COMPLETIONS:
        asked["top_logprobs"] = 20
    body = json.dumps({**asked, "n": n, "max_tokens": 200, "stream": stream}).encode()
    status, lag, grown = cost(server, "POST", path, body)
    assert status in (200, 400) and lag < MAX_LAG_S and grown < MAX_GROWTH, (status, lag, grown >> 20)


@pytest.mark.parametrize("size", [60_000, 1 << 20, LARGE])
@pytest.mark.parametrize(
    "head", [b'{"a":"\\"', b'"', b"[", b'{"a":', b"\\", b"\xff", b'{"prompt":"\\ud800', b"{}", b"[1,", b"nul"]
)
def test_malformed_bodies(server: Victim, size: int, head: bytes) -> None:
    body = head + head[-2:] * (size // len(head[-2:]))
    status, lag, grown = cost(server, "POST", COMPLETIONS, body)
    assert status == 400 and lag < MAX_LAG_S and grown < MAX_GROWTH, (status, lag, grown >> 20)
