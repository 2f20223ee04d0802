"""Over real sockets: clients of HTTP/1.0, and those that close their side once they have asked."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from patience import PATIENCE_S
from server_harness import TEXT, Live, live

ASKED = {"prompt": "a", "temperature": 0}


def connected(server: Live, version: str, path: str = "/v1/completions", **body: Any) -> socket.socket:
    """A connection on which a request was sent."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    payload = json.dumps({**ASKED, **body}).encode()
    head = f"POST {path} HTTP/{version}\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    sock.sendall(f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)
    return sock


def rest(sock: socket.socket) -> tuple[list[bytes], bytes]:
    """All that comes until the server closes: the lines of the head, interim answers left out, and the body."""
    found = b""
    while part := sock.recv(65536):
        found += part
    head, _, body = found.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100 "):
        head, _, body = body.partition(b"\r\n\r\n")
    return [line.lower() for line in head.split(b"\r\n")], body


def text_of(events: bytes) -> str:
    records = [r.removeprefix(b"data: ") for r in events.split(b"\n\n") if r]
    assert records.pop() == b"[DONE]"
    return "".join(json.loads(record)["choices"][0]["text"] for record in records)


def test_answers_of_http_1_0_are_not_chunked() -> None:
    with live() as server:
        with connected(server, "1.0", stream=True, max_tokens=100) as sock:
            head, body = rest(sock)
        assert head[0] == b"http/1.1 200 ok" and b"connection: close" in head
        assert not any(line.startswith((b"transfer-encoding", b"content-length")) for line in head)
        assert text_of(body) == TEXT
        with connected(server, "1.0", max_tokens=4) as sock:
            head, body = rest(sock)
        assert b"connection: close" in head and f"content-length: {len(body)}".encode() in head
        assert json.loads(body)["choices"][0]["text"] == TEXT[:4]
        with connected(server, "1.0", stream=True, temperature=-1) as sock:
            head, body = rest(sock)
        assert b" 400 " in head[0] and f"content-length: {len(body)}".encode() in head
        with connected(server, "1.1", stream=True, max_tokens=4) as sock:
            assert b"transfer-encoding: chunked" in sock.recv(65536).lower()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_closes_its_side_is_answered(version: str, stream: bool) -> None:
    with live(step_delay=0.002) as server, connected(server, version, stream=stream, max_tokens=100) as sock:
        sock.shutdown(socket.SHUT_WR)
        head, body = rest(sock)
        assert head[0] == b"http/1.1 200 ok" and b"connection: close" in head
        if not stream:
            assert json.loads(body)["choices"][0]["text"] == TEXT
        elif version == "1.0":
            assert text_of(body) == TEXT
        else:
            assert body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_pipelined_requests_of_such_a_client_are_all_answered() -> None:
    with live(step_delay=0.002) as server, connected(server, "1.1", max_tokens=50) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 2)
        sock.shutdown(socket.SHUT_WR)
        _, body = rest(sock)
        assert body.count(b'"status":"healthy"') == 2


def test_a_request_that_ends_in_its_body_is_over() -> None:
    with live() as server, socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as sock:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sock.sendall(head + b"content-length: 50\r\n\r\n{")
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock)[1] == b""


@pytest.mark.parametrize(("version", "stream"), [("1.1", False), ("1.1", True), ("1.0", True)])
def test_a_client_that_closed_both_sides_is_gone(version: str, stream: bool) -> None:
    with live(step_delay=0.005) as server:
        sock = connected(server, version, stream=stream, max_tokens=1900, ignore_eos=True)
        server.until(lambda: server.engine.num_running)
        sock.close()
        server.until(lambda: not server.engine.num_running)
        assert server.engine.aborts == 1


def test_a_client_that_closes_its_side_and_then_the_other_is_gone() -> None:
    with live(step_delay=0.005) as server:
        sock = connected(server, "1.1", stream=True, max_tokens=1900, ignore_eos=True)
        sock.shutdown(socket.SHUT_WR)
        server.until(lambda: server.engine.num_running)
        sock.close()
        server.until(lambda: not server.engine.num_running)
        assert server.engine.aborts == 1
