"""Processes that stand still: alive while their connections are, so nothing is lost, sent again or computed twice."""

from __future__ import annotations

import http.client
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from served import OPTIONS, Octavo, Stream
from unharmed import ask, unharmed

STALL_S = 5.0


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def prefilled(octavo: Octavo) -> float:
    """Prompt tokens of all that the engine ever began to compute."""
    octavo.get("/v1/metrics")  # asks the engine anew
    found = re.search(r"^octavo\S*prefix_cache_queries_total\S* (\S+)", ask(octavo, "/metrics", None, "GET")[1], re.M)
    assert found
    return float(found[1])


@pytest.mark.parametrize("title", [pytest.param("octavo-server", marks=pytest.mark.long), "octavo-engine"])
def test_a_stall_loses_nothing_and_computes_nothing_twice(folder: Path, model: str, title: str) -> None:
    """Streams of tokens for seconds, in the midst of which a process is stopped and goes on. The watchdog's time-out is
    shorter than the stop of the engine, which is none of its business; so is the server's patience with connections
    that are kept alive."""
    octavo = Octavo(
        folder,
        "serve",
        model,
        "--port",
        "0",
        "--watchdog-timeout",
        "3",
        "--keep-alive-timeout",
        "3",
        *OPTIONS,
        OCTAVO_FAULTS="step_delay_ms=20",
    )
    try:
        octavo.started()

        def start() -> list[Stream]:
            return [octavo.stream(150, prompt=f"stream {n}") for n in range(6)]

        at_first = prefilled(octavo)
        undisturbed = [stream.result() for stream in start()]
        cost = prefilled(octavo) - at_first
        with unharmed(octavo):
            before = prefilled(octavo)
            pids = {name: child.pid for name, child in octavo.children().items()}
            streams = [stream.begun() for stream in start()]
            kept = http.client.HTTPConnection("127.0.0.1", octavo.port, timeout=60)
            kept.request("GET", "/ready")
            assert kept.getresponse().read()
            with stopped(octavo.child(title)):
                kept.request("GET", "/ready")
                time.sleep(STALL_S)
            assert kept.getresponse().status == 200
            kept.close()
            assert octavo.get("/ready")[0] == 200
            assert [stream.result() for stream in streams] == undisturbed
            assert all(stream.error is None and stream.finish_reason == "length" for stream in streams)
            assert prefilled(octavo) - before == cost
            assert octavo.stream(5).result() != ""
            assert {name: child.pid for name, child in octavo.children().items()} == pids
        said = "a client is silent for" if title == "octavo-server" else "the engine does not answer since"
        assert said in octavo.output
    finally:
        octavo.close()
