"""More than fits, and clients that leave: full queues, exhausted pages, long prompts, disconnects at every stage."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest
from patience import PATIENCE_S
from served import Octavo, wait_until
from unharmed import ask, unharmed

STEP_S = 0.005
LONG = "a long prompt, " * 60
"""900 tokens: two steps."""


def _metric(octavo: Octavo, name: str) -> float:
    _, text, _ = ask(octavo, "/metrics", None, "GET")
    return sum(float(line.rpartition(" ")[2]) for line in str(text).splitlines() if line.startswith(f"octavo:{name}"))


class Caller:
    """A client that sends a request and may hang up at any moment."""

    def __init__(self, octavo: Octavo, **body: Any) -> None:
        self.socket = socket.create_connection(("127.0.0.1", octavo.port or 0), timeout=PATIENCE_S)
        content = json.dumps({"prompt": "abc", "temperature": 0, "ignore_eos": True, **body}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Length: {len(content)}\r\n"
        self.socket.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)

    def hang_up(self) -> None:
        self.socket.close()


def _engine(octavo: Octavo) -> dict[str, int]:
    metrics = octavo.get("/v1/metrics")[1]
    return {**metrics["queue"], "pages": metrics["kv"]["blocks_used"]}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("stage", ["queued", "prefill", "decode"])
def test_client_that_leaves_is_aborted(octavo: Octavo, stage: str, stream: bool) -> None:
    with unharmed(octavo):
        aborts = _metric(octavo, "request_aborts_total")
        others = [Caller(octavo, max_tokens=1000) for _ in range(8 if stage == "queued" else 0)]
        wait_until(lambda: _engine(octavo)["running"] == len(others), "a full engine")
        caller = Caller(octavo, prompt=LONG if stage == "prefill" else "abc", max_tokens=60, stream=stream)
        if stage == "queued":
            wait_until(lambda: _engine(octavo)["waiting"] == 1, "a queued request")
        elif stage == "decode":
            wait_until(lambda: _engine(octavo)["running"] == 1, "a running request")
        caller.hang_up()
        if stage == "queued":
            wait_until(lambda: _engine(octavo)["waiting"] == 0, "its abort")
        else:
            wait_until(lambda: _engine(octavo)["pages"] == 0, "its abort")
        wait_until(lambda: _metric(octavo, "request_aborts_total") >= aborts + 1, "its count")
        for other in others:
            other.hang_up()


def test_many_clients_leave_at_random(octavo: Octavo) -> None:
    with unharmed(octavo):
        stay = [octavo.stream(40, prompt=f"stay {n}") for n in range(3)]
        for round in range(12):
            callers = [Caller(octavo, max_tokens=200, stream=n % 2 == 0, n=1 + n % 2) for n in range(4)]
            time.sleep(0.01 * (round % 5))
            for caller in callers:
                caller.hang_up()
        for stream in stay:
            stream.result()
            assert stream.finish_reason == "length" or (stream.error or {}).get("code") == "queue_full"


def test_full_queue_is_429_and_what_runs_goes_on(octavo: Octavo) -> None:
    with unharmed(octavo):
        text = octavo.stream(60).result()
        admitted = [octavo.stream(60) for _ in range(16)]
        wait_until(lambda: _engine(octavo)["waiting"] >= 1, "a queue")
        answers: list[tuple[int, Any, Any]] = []

        def call() -> None:
            answers.append(ask(octavo, "/v1/completions", {"prompt": "x", "max_tokens": 4, "stream": True}))

        threads = [threading.Thread(target=call) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        full = [(body, headers) for status, body, headers in answers if status == 429]
        assert full and len(full) + sum(status == 200 for status, _, _ in answers) == 24
        for body, headers in full:
            assert body["error"]["code"] == "queue_full" and int(headers["Retry-After"]) >= 1
        texts = [stream.result() for stream in admitted if stream.error is None]
        assert len(texts) >= 8 and set(texts) <= {text, ""}
        assert texts.count(text) >= 16 - sum(stream.error is not None for stream in admitted)


def test_exhausted_pages_change_no_text(octavo: Octavo) -> None:
    """Eight sequences of up to 34 pages for 150: some are preempted, all end with their own text."""
    with unharmed(octavo):
        prompts = [f"{n} of eight, " * (n + 2) for n in range(8)]
        alone = [stream.result() for stream in [octavo.stream(400, prompt=prompt) for prompt in prompts[:3]]]
        before = _metric(octavo, "num_preemptions_total")
        streams = [octavo.stream(400, prompt=prompt) for prompt in prompts]
        texts = [stream.result() for stream in streams]
        assert texts[:3] == alone
        assert all(stream.finish_reason == "length" for stream in streams)
        wait_until(lambda: _metric(octavo, "num_preemptions_total") > before, "a preemption")


def test_what_never_fits_is_refused_and_the_rest_is_clamped(octavo: Octavo) -> None:
    with unharmed(octavo):
        for stream in (False, True):
            status, answer, _ = ask(octavo, "/v1/completions", {"prompt": "x" * 3000, "stream": stream})
            assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
            assert "1024" in answer["error"]["message"] and "3000" in answer["error"]["message"]
        running = Caller(octavo, prompt="abc", max_tokens=100_000_000)
        wait_until(lambda: _engine(octavo)["running"] == 1, "a running request")
        assert _engine(octavo)["pages"] < 30  # none is reserved for what may never come
        running.hang_up()
        wait_until(lambda: _engine(octavo)["running"] == 0, "its abort")
        body = {"prompt": "y" * 1000, "max_tokens": 10**9, "ignore_eos": True}
        status, answer, _ = ask(octavo, "/v1/completions", body)
        assert status == 200 and answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 24


MALFORMED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"prompt": "a", "temperature": NaN}',
    b'{"prompt": "a", "temperature": Infinity}',
    b'{"prompt": "a", "temperature": 1e999}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"prompt": {"a": 1}}',
    b'{"prompt": [[1, -1]]}',
    b'{"prompt": [1, 1.5]}',
    b'{"prompt": "a", "stop": [1]}',
]


def test_malformed_bodies_on_every_face(octavo: Octavo) -> None:
    with unharmed(octavo):
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            for body in MALFORMED:
                status, answer, _ = ask(octavo, path, body)
                assert status < 500 and (status == 400 or path == "/tokenize" or b"ud800" in body), (path, body[:60])
                if status == 400:
                    assert set(answer["error"]) == {"message", "type", "param", "code"}, (path, body[:60])
