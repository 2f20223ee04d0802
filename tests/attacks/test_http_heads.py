"""T-HDR and its kin: heads, request lines and framings that no honest client sends. Refused with a bounded memory, and
never answered twice."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
from victim import MIB, Growth, Victim, error_of, read_all, status_of, statuses_of, trickle, victim

from octavo.config import ServerConfig
from octavo.server.http.connection import MAX_HEADERS, MAX_PIPELINED

CONFIG = ServerConfig(drain_timeout=1, header_timeout=1.0, body_timeout=1.0, keep_alive_timeout=1, max_connections=40)
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
CLOSE = b"connection: close\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Victim]:
    with victim(CONFIG) as found:
        yield found


@pytest.mark.parametrize(
    "data",
    [
        GET + b"x: " + b"a" * (64 * MIB) + b"\r\n\r\n",
        GET + b"a" * (64 * MIB) + b": x\r\n\r\n",
        GET + b"x: y\r\n" * 100_000 + b"\r\n",
        GET + b"x: \r\n" * 100_000,
        b"GET /" + b"a" * (64 * MIB) + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"G" * (8 * MIB),
        b"\r\n" * (4 * MIB),
        GET + b"x:" + b" " * (8 * MIB) + b"y\r\n\r\n",
    ],
    ids=["one header", "one name", "headers", "no end", "path", "method", "blank lines", "blanks"],
)
def test_huge_heads(server: Victim, data: bytes) -> None:
    """T-HDR: 400 or 431, and no memory for it."""
    num_fds = server.ps.num_fds()
    with Growth(server) as growth:
        answer = server.send(data)
    assert growth.bytes < 16 * MIB
    assert error_of(answer, status_of(answer)) and status_of(answer) in (400, 431)
    server.unharmed(num_fds)


def test_heads_up_to_the_bound_are_taken(server: Victim) -> None:
    """T-HDR: the bound itself does no harm."""
    assert status_of(server.send(GET + CLOSE + b"x: " + b"a" * 60_000 + b"\r\n\r\n")) == 200
    assert status_of(server.send(GET + CLOSE + b"x: y\r\n" * (MAX_HEADERS - 2) + b"\r\n")) == 200
    assert status_of(server.send(GET + CLOSE + b"x: y\r\n" * (MAX_HEADERS - 1) + b"\r\n")) == 431


POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
BODY = b'{"prompt":"a","max_tokens":1}'
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    "data",
    [
        POST + LENGTH + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
        POST + CHUNKED + LENGTH + b"\r\n0\r\n\r\n" + SMUGGLED,
        POST + LENGTH + b"content-length: 5\r\n\r\n" + BODY,
        POST + LENGTH + LENGTH + b"\r\n" + BODY,
        POST + b"content-length: 29, 29\r\n\r\n" + BODY,
        POST + b"content-length: +29\r\n\r\n" + BODY,
        POST + b"content-length: -1\r\n\r\n" + BODY,
        POST + b"content-length: 0x1d\r\n\r\n" + BODY,
        POST + b"content-length: 29abc\r\n\r\n" + BODY,
        POST + b"content-length: 99999999999999999999999999\r\n\r\n" + BODY,
        POST + b"content-length:\r\n\r\n" + BODY,
        POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + CHUNKED + b"\r\nzz\r\n",
        POST + CHUNKED + b"\r\n-1\r\n\r\n",
        POST + CHUNKED + b"\r\nfffffffffffffffff\r\n",
        POST + CHUNKED + b"\r\n3\r\n{}xx0\r\n\r\n" + SMUGGLED,
        POST + LENGTH.replace(b": ", b" : ") + b"\r\n" + BODY,
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n x: folded\r\n" + LENGTH + b"\r\n" + BODY,
        b"GET /health HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nx: a\rb\r\n\r\n",
        b"GET /health HTTP/1.1\nhost: x\n\n",
        b"GET /health\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET /health HTTP/1.1.1\r\nhost: x\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
        b"\x00" * 1000,
    ],
)
def test_smuggling_shapes_and_broken_framing(server: Victim, data: bytes) -> None:
    """T-BODY: one refusal, and what follows is not read as a request."""
    answer = server.send(data)
    assert error_of(answer, 400)["type"] == "invalid_request_error"
    assert b"fake-model" not in answer
    server.unharmed()


def test_refusals_say_nothing_of_the_machine(server: Victim) -> None:
    """T-LEAK: no path, address or traceback, and nothing of what was sent."""
    for data in (b"GET /secret\x00 HTTP/1.1\r\n\r\n", POST + LENGTH + CHUNKED + b"\r\n"):
        answer = server.send(data).decode()
        assert not re.search(r"0x[0-9a-f]{6,}|Traceback|/work|\.py|secret", answer), answer
        assert "server:" not in answer.lower()


def test_ways_to_say_the_same(server: Victim) -> None:
    """What is odd but right is answered."""
    assert status_of(server.send(b"\r\n\r\n" + GET + CLOSE + b"\r\n")) == 200
    assert status_of(server.send(b"GET /health HTTP/1.0\r\n\r\n")) == 200
    assert status_of(server.send(b"GET   /health HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")) == 200
    assert status_of(server.send(b"GET /health?a=%00&b=%ff HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")) == 200
    assert status_of(server.send(b"GET http://other/health HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")) == 200
    assert status_of(server.send(b"OPTIONS * HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")) == 404
    assert status_of(server.send(b"GET /%ff%fe HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")) == 404
    upgrade = b"connection: upgrade, close\r\nupgrade: websocket\r\n"
    assert status_of(server.send(GET + upgrade + b"\r\n")) == 200
    h2c = b"connection: upgrade, close\r\nupgrade: h2c\r\n"
    assert status_of(server.send(POST + LENGTH + h2c + b"\r\n" + BODY)) == 200
    server.unharmed()


def test_paths_are_not_resolved(server: Victim) -> None:
    for path in (b"/x/../health", b"//health", b"/./health", b"/health/", b"/x\\..\\health"):
        assert status_of(server.send(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")) in (400, 404)


ODD_PATHS = [
    b"/x/../health", b"/health/../v1/models", b"//health", b"/v1/models", b"/%2e%2e/health", b"*",
    b"http://x/v1/models", b"http://x//health", b"/health?/../v1/models#", b"/health\\..\\v1/models",
]  # fmt: skip


def test_paths_are_not_resolved_past_the_gate() -> None:
    """T-ROUTES, with the bytes of a path as they are."""
    with victim(ServerConfig(api_key=("k",), drain_timeout=1)) as guarded:
        for path in ODD_PATHS:
            answer = guarded.send(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n")
            is_open = path.startswith(b"/health?")
            assert status_of(answer) == (200 if is_open else 401) or error_of(answer, 400), (path, answer)
            assert b"fake-model" not in answer
        with guarded.connect() as sock:  # an honest request does not lend its key to the next on the connection
            sock.sendall(
                b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\n\r\n" + SMUGGLED + GET + CLOSE + b"\r\n"
            )
            assert statuses_of(read_all(sock)) == [200, 401, 200]


def test_pipelined_requests_are_answered_in_order(server: Victim) -> None:
    asked = POST + LENGTH + b"\r\n" + BODY + GET + b"\r\n" + b"GET /nowhere HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n"
    assert statuses_of(server.send(asked)) == [200, 200, 404]


def test_pipelined_flood_is_dropped(server: Victim) -> None:
    """Many requests in one packet cost the server objects each; behind a slow one only a few may wait."""
    slow = b'{"prompt":"a","max_tokens":400,"ignore_eos":true}'
    head = POST + b"content-length: %d\r\n\r\n" % len(slow)
    with Growth(server) as growth:
        answer = server.send(head + slow + (GET + b"\r\n") * 200_000)
    assert len(statuses_of(answer)) <= MAX_PIPELINED + 1 and growth.bytes < 16 * MIB
    server.unharmed()


def test_head_that_trickles_in_times_out(server: Victim) -> None:
    with server.connect() as sock:
        sock.sendall(GET + b"x: ")
        trickle(sock, b"y")
        answer = read_all(sock)
    assert not answer or error_of(answer, 408)["code"] == "request_timeout"


def test_connection_that_asks_nothing_is_closed(server: Victim) -> None:
    for before in (b"", b"\r\n", GET + b"\r\n"):
        with server.connect(10) as sock:
            sock.sendall(before)
            answer = read_all(sock)  # fails unless the server closes it
            assert (status_of(answer) in (200, 408)) if answer else not before.strip()


def test_connections_beyond_the_cap_are_turned_away(server: Victim) -> None:
    num_fds = server.ps.num_fds()
    held = []
    try:
        for _ in range(CONFIG.max_connections):
            sock = server.connect()
            sock.sendall(b"GET /health HTTP/1.1\r\n")
            held.append(sock)
        answer = b""
        for _ in range(50):
            with server.connect() as sock:
                sock.settimeout(0.3)
                try:
                    answer = sock.recv(4096)
                except TimeoutError:
                    answer = b""
            if answer:
                break
        error = error_of(answer, 503)
        assert error["code"] == "too_many_connections" and b"retry-after: " in answer
    finally:
        for sock in held:
            sock.close()
    server.wait_for(lambda: server.ask("GET", "/health")[0] == 200, "room for a connection")
    server.unharmed(num_fds)


def test_garbage_in_the_middle_of_a_stream_never_lands_in_it() -> None:
    """The answer of another request, or an error page, inside of a stream would be taken for the model's words."""
    with victim(step_delay=0.005) as server, server.connect() as sock:
        body = b'{"prompt":"a","max_tokens":400,"ignore_eos":true,"stream":true}'
        sock.sendall(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        begun = sock.recv(4096)
        assert begun.startswith(b"HTTP/1.1 200")
        sock.sendall(b"\x00\x01garbage\r\n\r\n")
        rest = read_all(sock)
        assert b"HTTP/1.1" not in rest and b"invalid" not in rest and b"[DONE]" not in rest
        server.wait_for(lambda: _running(server) == 0, "the work of a broken connection to end")
        server.unharmed()


def test_pipelining_client_that_leaves_frees_the_engine() -> None:
    """With a request waiting behind it the end of the connection is seen all the same."""
    slow = b'{"prompt":"a","max_tokens":2000,"ignore_eos":true}'
    with victim(step_delay=0.005) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall((POST + b"content-length: %d\r\n\r\n" % len(slow) + slow) * 2)
            server.wait_for(lambda: _running(server) == 1, "the first to run")
        server.wait_for(lambda: _running(server) == 0, "the work of a client that left to end")
        server.unharmed()


def _running(server: Victim) -> int:
    import json

    return int(json.loads(server.ask("GET", "/v1/metrics")[2])["queue"]["running"])
