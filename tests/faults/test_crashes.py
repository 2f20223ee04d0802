"""Engines and servers that are killed, break down or hang under load: what was accepted is finished."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import PATIENCE_S
from served import OPTIONS, SMALL, Octavo, Stream, wait_until
from unharmed import unharmed

from octavo.wire.endpoint import private_endpoint

KILLS = 3
"""tools/soak kills more often, and a real model."""


@contextmanager
def served(folder: Path, *args: str, faults: str = "step_delay_ms=5") -> Iterator[Octavo]:
    command = Octavo(folder, *args, OCTAVO_FAULTS=faults)
    try:
        yield command
    finally:
        command.close()


@pytest.mark.long
def test_kills_at_random_moments_lose_nothing(folder: Path, model: str) -> None:
    """32 streams, the engine killed -9 again and again, also while it restarts: 32 complete answers, the right ones."""
    rng = random.Random(4)
    options = [*OPTIONS[:-1], "32"]
    with served(folder, "serve", model, "--port", "0", *options, faults="step_delay_ms=15") as octavo:
        octavo.started()
        prompts = ["".join(rng.choices("abcdefgh ", k=rng.randint(3, 60))) for _ in range(32)]

        def start() -> list[Stream]:
            return [octavo.stream(160, prompt=prompt) for prompt in prompts]

        undisturbed = [stream.result() for stream in start()]
        with unharmed(octavo):
            streams = start()
            for kill in range(KILLS):
                time.sleep(rng.uniform(0.1, 0.8))
                octavo.child("octavo-engine").kill()
                wait_until(lambda: octavo.get("/ready")[0] == 503, "/ready to say 503")
                if kill != 1:  # the last kill comes while the engine starts
                    wait_until(lambda: octavo.get("/ready")[0] == 200, "a new engine")
            assert [stream.result() for stream in streams] == undisturbed
            assert all(stream.error is None and stream.finish_reason == "length" for stream in streams)
        assert "broke down" not in octavo.output


@pytest.mark.long
def test_the_request_that_breaks_the_engine_fails_alone(folder: Path, model: str) -> None:
    """A prompt with the byte z breaks every engine that meets it; ten others were in flight each time."""
    with served(
        folder, "serve", model, "--port", "0", *OPTIONS, faults=f"step_delay_ms=10,crash_at_token={ord('z')}"
    ) as octavo:
        octavo.started()
        prompts = [f"harmless {n}" for n in range(6)]
        undisturbed = [stream.result() for stream in [octavo.stream(200, prompt=prompt) for prompt in prompts]]
        assert not any("z" in text for text in undisturbed)
        with unharmed(octavo):
            streams = [octavo.stream(200, prompt=prompt).begun() for prompt in prompts[:3]]
            poison = octavo.stream(200, prompt="po zon")
            streams += [octavo.stream(200, prompt=prompt) for prompt in prompts[3:]]
            assert poison.result() == ""
            assert poison.error is not None
            assert poison.error["code"] == "engine_error"
            texts = [stream.result() for stream in streams]
            refused = [stream.error is not None and stream.error["code"] == "unavailable" for stream in streams]
            assert not any(refused[:3])
            assert [text for text, no in zip(texts, refused, strict=True) if not no] == [
                text for text, no in zip(undisturbed, refused, strict=True) if not no
            ]
        assert octavo.output.count("was killed by SIGSEGV") in (2, 3)
        assert "Segmentation fault" in octavo.output  # the stacks that the engine left


def test_exception_in_a_step_ends_its_requests_only(folder: Path, model: str) -> None:
    with served(folder, "serve", model, "--port", "0", *SMALL, faults="step_delay_ms=10,raise_at_step=280") as octavo:
        octavo.started()
        engine = octavo.child("octavo-engine").pid
        with unharmed(octavo):
            running = [octavo.stream(500) for _ in range(8)]
            wait_until(lambda: octavo.running() == 8, "eight rows")
            waiting = [octavo.stream(30) for _ in range(4)]
            for stream in running:
                stream.result()
                assert stream.error is not None and stream.error["code"] == "engine_error"
                assert stream.finish_reason is None
            assert [stream.result() != "" for stream in waiting] == [True] * 4
            assert all(stream.finish_reason == "length" for stream in waiting)
        assert octavo.child("octavo-engine").pid == engine


@pytest.mark.long
def test_a_lost_device_ends_the_engine_and_the_streams_go_on(octavo: Octavo, folder: Path, model: str) -> None:
    """What follows a CUDA error: the process ends with its last words, the next one has a device again."""
    prompts = [f"stream {n}" for n in range(6)]
    undisturbed = [stream.result() for stream in [octavo.stream(160, prompt=prompt) for prompt in prompts]]
    faults = "step_delay_ms=5,lose_device_at_step=130"
    with served(folder, "serve", model, "--port", "0", *SMALL, faults=faults) as losing:
        losing.started()
        with unharmed(losing):
            streams = [losing.stream(160, prompt=prompt) for prompt in prompts]
            assert [stream.result() for stream in streams] == undisturbed
            assert all(stream.error is None and stream.finish_reason == "length" for stream in streams)
        assert losing.output.count("the engine ended with code 6") == 1
        assert "injected: the device is lost" in losing.output
        assert "the engine before this one broke down" in losing.output  # with the stacks it left


def test_a_killed_server_is_back(octavo: Octavo) -> None:
    engine = octavo.child("octavo-engine").pid
    with unharmed(octavo, pages_free_s=2.0):
        lost = [octavo.stream(900).begun(), octavo.stream(900)]
        octavo.child("octavo-server").kill()
        wait_until(lambda: octavo.get("/ready")[0] == 200, "a new server")
        for stream in lost:
            stream.result()
            assert stream.finish_reason is None
    assert octavo.child("octavo-engine").pid == engine


@pytest.mark.long
def test_killed_server_of_an_engine_elsewhere(folder: Path, model: str) -> None:
    with private_endpoint() as endpoint, served(folder, "engine", model, "--endpoint", endpoint, *SMALL) as engine:
        with served(folder, "serve", "--connect", endpoint, "--port", "0") as first:
            first.started()
            text = first.stream(60).result()
            with unharmed(first, pages_free_s=2.0):
                first.stream(900).begun()
                first.child("octavo-server").kill()
            lost = first.stream(900).begun()
            first.process.kill()  # the supervisor too: nobody starts a server again
            lost.result()
        with served(folder, "serve", "--connect", endpoint, "--port", "0") as second:
            second.started()
            wait_until(lambda: second.get("/v1/metrics")[1]["kv"]["blocks_used"] == 0, "free pages")
            assert second.stream(60).result() == text
            assert engine.process.poll() is None


@pytest.mark.long
def test_an_engine_that_breaks_down_alone_is_told_from_a_killed_one(folder: Path, model: str) -> None:
    """Without a supervisor, too: the next engine at the endpoint finds what the one before left."""
    with private_endpoint() as endpoint, served(folder, "serve", "--connect", endpoint, "--port", "0") as server:
        ends = [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT]
        stream: Stream | None = None
        for end in ends:
            with served(folder, "engine", model, "--endpoint", endpoint, *SMALL) as engine:
                wait_until(lambda: server.port is not None and server.get("/ready")[0] == 200, "an engine")
                stream = stream or server.stream(900)
                stream.begun(len(stream.pieces) + 2)
                assert stream.error is None
                engine.signal(end)
                engine.process.wait(PATIENCE_S)
        assert stream is not None
        with served(folder, "engine", model, "--endpoint", endpoint, *SMALL) as engine:
            stream.result()
            assert stream.error is not None and stream.error["code"] == "engine_error"
            wait_until(lambda: server.get("/ready")[0] == 200, "an engine")
            assert "broke down" in engine.output
            engine.signal(signal.SIGTERM)
            assert engine.ended() == 0
            left = Path(endpoint.removeprefix("ipc://"))
            assert not [path.name for path in left.parent.iterdir() if path.name.startswith(f"{left.name}.")]
