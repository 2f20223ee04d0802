"""`octavo serve` on a GPU: engines that are killed or lose their device, and streams that go on as if nothing had been.
Without a GPU tests/faults has the same on the CPU, and tests/engine a device that is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from engines import NO_GPU, VOCAB, save
from served import Octavo, Stream, wait_until
from tiny_models import make_reference

pytestmark = NO_GPU
OPTIONS = [
    *("--device", "cuda", "--dtype", "float32", "--kv-cache-memory", "16MiB", "--max-num-seqs", "16"),
    *("--max-model-len", "1024"),
]
PROMPTS = [f"{word} {n}" for n in range(4) for word in ("one", "another", "a third of them")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changes = {"vocab_size": VOCAB, "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": None}
    return save(make_reference(**changes), tmp_path_factory.mktemp("llama"))


@contextmanager
def served(folder: Path, faults: str = "step_delay_ms=2") -> Iterator[Octavo]:
    command = Octavo(folder, "serve", str(folder), "--port", "0", *OPTIONS, OCTAVO_FAULTS=faults)
    try:
        yield command.started()
    finally:
        command.close()


def start(octavo: Octavo) -> list[Stream]:
    return [octavo.stream(300, prompt=prompt) for prompt in PROMPTS]


def complete(streams: list[Stream], undisturbed: list[str]) -> None:
    assert [stream.result() for stream in streams] == undisturbed
    assert all(stream.error is None and stream.finish_reason == "length" for stream in streams)


def test_kills_lose_nothing(folder: Path) -> None:
    with served(folder) as octavo:
        undisturbed = [stream.result() for stream in start(octavo)]
        streams = start(octavo)
        for _ in range(2):
            for stream in streams:
                stream.begun(len(stream.pieces) + 5)
            octavo.child("octavo-engine").kill()
            wait_until(lambda: octavo.get("/ready")[0] == 503, "/ready to say 503", 5.0)
            wait_until(lambda: octavo.get("/ready")[0] == 200, "a new engine", 60)
        complete(streams, undisturbed)


def test_a_lost_device_ends_the_engine_and_the_streams_go_on(folder: Path) -> None:
    with served(folder) as octavo:
        undisturbed = [stream.result() for stream in start(octavo)]
    with served(folder, faults="step_delay_ms=2,lose_device_at_step=200") as octavo:
        engine = octavo.child("octavo-engine").pid
        complete(start(octavo), undisturbed)
        assert octavo.child("octavo-engine").pid != engine
        assert "the device is lost" in octavo.output


def test_streams_that_hang_up_free_their_pages(folder: Path) -> None:
    with served(folder) as octavo:
        streams = [stream.begun() for stream in start(octavo)]
        for stream in streams:
            stream.leave()
        wait_until(lambda: octavo.get("/v1/metrics")[1]["kv"]["blocks_used"] == 0, "free pages")
        assert octavo.running() == 0
        octavo.stream(20).result()


def test_a_start_beside_an_engine_that_holds_the_memory(folder: Path) -> None:
    """The killed engine's memory may still be going when the next one plans its own."""
    with served(folder) as octavo:
        began = time.monotonic()
        octavo.child("octavo-engine").kill()
        wait_until(lambda: octavo.get("/ready")[0] == 200, "a new engine", 60)
        assert time.monotonic() - began < 60
        assert octavo.stream(20).result()


ASSERTED = """
import sys
import torch
from octavo import LLMEngine
from octavo.errors import DeviceLost

with LLMEngine(sys.argv[1], device="cuda", dtype="float32", kv_cache_memory="4MiB", max_model_len=256) as engine:
    stream = engine.stream([5, 6, 7], temperature=0, max_tokens=200, ignore_eos=True)
    for _ in range(20):
        next(stream)
    torch.zeros(4, device="cuda")[torch.tensor([1 << 20], device="cuda")]  # an assertion fails on the device
    try:
        for _ in stream:
            pass
    except DeviceLost as error:
        print("lost:", error, flush=True)
        import os
        os._exit(7)  # nothing on the device can be closed any more
    except BaseException as error:
        print("instead:", type(error), error, flush=True)
print("went on")
"""


def test_a_true_error_of_the_device_is_no_failed_step(folder: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", ASSERTED, str(folder)], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 7 and ran.stdout.startswith("lost: the GPU failed"), ran.stdout + ran.stderr[-3000:]
