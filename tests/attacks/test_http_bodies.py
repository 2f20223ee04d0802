"""T-BODY: bodies that are too long, too slow, lie about their length or come in a million pieces."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from patience import PATIENCE_S
from victim import MIB, Growth, Victim, error_of, read_all, read_one, status_of, statuses_of, trickle, victim

from octavo.config import ServerConfig

CONFIG = ServerConfig(drain_timeout=1, max_body_size="5MiB", body_timeout=2.0, send_timeout=1.0, keep_alive_timeout=1)
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
CLOSE = b"connection: close\r\n"
BODY = b'{"prompt":"a","max_tokens":1}'
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Victim]:
    with victim(CONFIG) as found:
        yield found


def whole(body: bytes, extra: bytes = CLOSE) -> bytes:
    return POST + extra + b"content-length: %d\r\n\r\n" % len(body) + body


def chunks(body: bytes, size: int) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_many_stalled_bodies_are_bounded_together(server: Victim) -> None:
    """Each is within the limit, none ever ends: some are held, the others wait unread. Small ones are taken all the
    while."""
    num_fds, part = server.ps.num_fds(), b"a" * (39 << 17)
    with Growth(server) as growth, ExitStack() as stack:
        for _ in range(40):
            sock = stack.enter_context(server.connect())
            sock.sendall(POST + b"content-length: %d\r\n\r\n" % (40 << 17))
            sock.setblocking(False)
            with suppress(OSError):
                sock.send(part)
        server.unharmed()
    assert growth.bytes < 160 * MIB
    server.unharmed(num_fds)


@pytest.mark.long
def test_more_large_bodies_than_there_is_room_for_are_answered_one_after_the_other() -> None:
    body = b'{"prompt":"abc","max_tokens":1,"user":"' + b"a" * (29 * MIB) + b'"}'
    statuses: list[int] = []
    with victim(ServerConfig(drain_timeout=1, body_timeout=120)) as server:

        def ask() -> None:
            statuses.append(server.ask("POST", "/v1/completions", body, timeout=240)[0])

        asking = [threading.Thread(target=ask) for _ in range(24)]
        with Growth(server) as growth:
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join(240)
        assert statuses == [200] * 24
        assert growth.bytes < 512 * MIB  # of 24 x 29 MiB: four at once, each as bytes, whole and as text
        server.unharmed()


@pytest.mark.parametrize("connection", [b"", CLOSE])
@pytest.mark.parametrize("form", ["length", "chunked", "one chunk"])
def test_bodies_over_the_limit(server: Victim, form: str, connection: bytes) -> None:
    body = b'{"prompt":"' + b"a" * (32 * MIB) + b'"}'
    data = {
        "length": POST + connection + b"content-length: %d\r\n\r\n" % len(body) + body,
        "chunked": POST + connection + CHUNKED + b"\r\n" + chunks(body, 65536),
        "one chunk": POST + connection + CHUNKED + b"\r\n" + chunks(body, 1 << 30),
    }[form]
    num_fds = server.ps.num_fds()
    with Growth(server) as growth:
        answer = server.send(data)
    assert error_of(answer, 413)["code"] == "content_too_large" and growth.bytes < 32 * MIB
    server.unharmed(num_fds)


def test_announced_length_over_the_limit_is_refused_before_the_body(server: Victim) -> None:
    for expect in (b"expect: 100-continue\r\n", b""):
        with server.connect() as sock:
            sock.sendall(POST + expect + b"content-length: 99999999\r\n\r\n")
            answer = read_one(sock)
            assert error_of(answer, 413) and b"100 Continue" not in answer


def test_million_chunks_of_one_byte(server: Victim) -> None:
    body = b'{"max_tokens":1,"prompt":"a"' + b" " * 1_000_000 + b"}"
    with Growth(server) as growth:
        answer = server.send(POST + CLOSE + CHUNKED + b"\r\n" + chunks(body, 1))
    assert status_of(answer) == 200 and growth.bytes < 32 * MIB
    server.unharmed()


def test_body_sent_byte_by_byte(server: Victim) -> None:
    with server.connect() as sock:
        sock.sendall(POST + CLOSE + b"content-length: %d\r\n\r\n" % len(BODY))
        for byte in BODY:
            sock.sendall(bytes([byte]))
        assert status_of(read_all(sock)) == 200


def test_lengths_that_lie(server: Victim) -> None:
    """Too short: the rest is not a request. Too long: it is waited for, but not for long."""
    short = server.send(POST + b"content-length: 5\r\n\r\n" + BODY)
    assert statuses_of(short)[0] == 400 and set(statuses_of(short)) == {400}
    assert error_of(server.send(POST + b"content-length: 500\r\n\r\n" + BODY), 408)["code"] == "request_timeout"
    with server.connect() as sock:  # the client gives up
        sock.sendall(POST + b"content-length: 500\r\n\r\n" + BODY)
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    server.unharmed()


@pytest.mark.parametrize("head", [CHUNKED, b"content-length: 3000000\r\n"])
def test_body_that_trickles_in_times_out(server: Victim, head: bytes) -> None:
    num_fds = server.ps.num_fds()
    with server.connect() as sock:
        sock.sendall(POST + head + b"\r\n")
        trickle(sock, b"1\r\n \r\n" if head == CHUNKED else b" ")
        answer = read_all(sock)
    assert not answer or status_of(answer) == 408
    server.unharmed(num_fds)


@pytest.mark.parametrize("head", [CHUNKED, b"content-length: 9\r\n"])
@pytest.mark.parametrize("request_line", [b"GET /health", b"GET /nowhere", b"PUT /v1/completions", b"DELETE /docs"])
def test_body_that_nobody_wants_never_ends(server: Victim, request_line: bytes, head: bytes) -> None:
    """It is answered; then the connection does not stay open for the rest."""
    with pytest.MonkeyPatch.context(), server.connect(15) as sock:
        sock.sendall(request_line + b" HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n")
        answer = read_all(sock)
        assert status_of(answer) in (200, 404, 405) and b"connection: close" in answer.lower()
    server.unharmed()


def test_early_answer_keeps_the_connection_when_the_body_has_come(server: Victim) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    try:
        for _ in range(3):
            connection.request("POST", "/nowhere", BODY, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 404 and answer.getheader("connection") is None and answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "GZIP"])
def test_compressed_bodies_are_not_unpacked(server: Victim, encoding: str) -> None:
    """T-BODY: a bomb stays what it is."""
    bomb = zlib.compress(b" " * (64 * MIB)) if encoding == "deflate" else gzip.compress(b" " * (64 * MIB))
    with Growth(server) as growth:
        answer = server.send(whole(bomb, CLOSE + b"content-encoding: %s\r\n" % encoding.encode()))
    assert error_of(answer, 415)["code"] == "unsupported_media_type" and growth.bytes < 16 * MIB
    server.unharmed()


def test_compressed_transfer_is_refused(server: Victim) -> None:
    data = gzip.compress(BODY)
    answer = server.send(POST + CLOSE + b"transfer-encoding: gzip, chunked\r\n\r\n" + chunks(data, 1000))
    assert status_of(answer) == 400


def test_expect_100_continue(server: Victim) -> None:
    with server.connect() as sock:
        sock.sendall(POST + CLOSE + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY))
        assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        assert status_of(read_all(sock)) == 200
    with server.connect() as sock:  # refused before it is asked for
        sock.sendall(
            POST.replace(b"application/json", b"text/plain") + b"expect: 100-continue\r\ncontent-length: 9\r\n\r\n"
        )
        answer = read_all(sock)
        assert error_of(answer, 415) and b"connection: close" in answer.lower()


def test_http_1_0(server: Victim) -> None:
    head = POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"content-length: %d\r\n\r\n" % len(BODY)
    answer = server.send(head + BODY)
    assert status_of(answer) == 200 and b"connection: close" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 1


def test_trailers_and_chunk_extensions(server: Victim) -> None:
    """Read over when short: they add no header to a request that is being answered. Refused when long."""
    head, body = POST + CLOSE + CHUNKED + b"\r\n", b"%x;a=b\r\n%s\r\n" % (len(BODY), BODY)
    assert status_of(server.send(head + body + b"0\r\ncontent-type: text/plain\r\nx-request-id: late\r\n\r\n")) == 200
    with Growth(server) as growth:
        for tail in (
            b"x: " + b"a" * (16 * MIB) + b"\r\n\r\n",
            b"x: y\r\n" * 100_000 + b"\r\n",
        ):
            assert status_of(server.send(head + body + b"0\r\n" + tail)) in (400, 431)
        assert status_of(server.send(head + b"2;" + b"a" * (16 * MIB) + b"\r\n{}\r\n0\r\n\r\n")) == 400
    assert growth.bytes < 16 * MIB
    server.unharmed()


def test_reader_of_a_stream_that_takes_nothing_is_dropped(server: Victim) -> None:
    """The engine's pages are freed, and what was buffered for it."""
    num_fds = server.ps.num_fds()
    body = b'{"prompt":"a","max_tokens":2000,"n":16,"ignore_eos":true,"stream":true,"logprobs":5}'
    with socket.socket() as sock, Growth(server) as growth:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(whole(body, b""))
        server.wait_for(lambda: _running(server) > 0, "the stream to begin")
        server.wait_for(lambda: _running(server) == 0, "the stream to be dropped")
        assert growth.bytes < 64 * MIB
    server.unharmed(num_fds)


def test_reader_of_a_whole_answer_that_takes_nothing_is_dropped(server: Victim) -> None:
    """An answer that is complete does not wait in memory for ever."""
    num_fds = server.ps.num_fds()
    socks = []
    try:
        for _ in range(2):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            body = b'{"prompt":"a","max_tokens":2000,"n":8,"ignore_eos":true,"logprobs":20}'  # more than kernels buffer
            sock.sendall(whole(body, b""))
            socks.append(sock)
        server.wait_for(lambda: server.ps.num_fds() > num_fds, "the connections")
        server.wait_for(lambda: server.ps.num_fds() <= num_fds + 1, "the connections to be dropped")
    finally:
        for sock in socks:
            sock.close()
    server.unharmed(num_fds)


def test_slow_reader_that_reads_gets_everything(server: Victim) -> None:
    """Slower than the time-out in all, but never idle."""
    body = b'{"prompt":"a","max_tokens":1500,"n":4,"ignore_eos":true,"logprobs":5}'
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(whole(body))
        received = bytearray()
        while chunk := sock.recv(16384):
            received += chunk
            time.sleep(0.05)
    head, _, answer = bytes(received).partition(b"\r\n\r\n")
    assert len(json.loads(answer)["choices"]) == 4, head


def _running(server: Victim) -> int:
    return int(json.loads(server.ask("GET", "/v1/metrics")[2])["queue"]["running"])
