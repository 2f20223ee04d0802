"""`octavo serve` in the engine check: how long it takes from the command to the first request served, with weights read
from disk, and how long until killed streams go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from engine_models import model_folder
from engine_work import RESUME, START, Figure, Scene

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "procs"))
from served import Octavo, wait_until

STREAMS, TOKENS = 8, 900


def command(scene: Scene, folder: Path) -> Octavo:
    options = ["--device", scene.device, "--dtype", "bfloat16", "--port", "0", "--max-num-seqs", "256"]
    if scene.dry:
        options += ["--kv-cache-memory", "4MiB", "--max-model-len", "1024", "--threads", "1"]
    elif scene.amount.kv_pages:
        options += ["--kv-cache-memory", scene.amount.kv_pages]
    return Octavo(scene.folder, "serve", str(folder), *options)


def begun(scene: Scene, folder: Path) -> tuple[Octavo, float]:
    began = time.perf_counter()
    octavo = command(scene, folder).started()
    return octavo, time.perf_counter() - began


def first_words(octavo: Octavo) -> str:
    """The engine's log lines of its start."""
    return "\n".join(line for line in octavo.output.splitlines() if "octavo" in line or " in " in line)[-3000:]


def start(scene: Scene, folder: Path, name: str) -> Figure:
    """The second start: then the page cache holds the file and no kernel is compiled."""
    seconds = []
    for _ in range(1 if scene.amount.repeats == 1 else 2):
        octavo, took = begun(scene, folder)
        log = first_words(octavo)
        octavo.close()
        seconds.append(took)
    size = (folder / "model.safetensors").stat().st_size
    details = {"starts": seconds, "file_bytes": size, "log": log}
    return Figure(START, name, "s", seconds[-1], details=details)


def resume(scene: Scene, folder: Path, name: str) -> Figure:
    """Seconds from the engine's death to the next token of all streams. All of them must end as they were asked to."""
    octavo, _ = begun(scene, folder)
    try:
        tokens = 40 if scene.dry else TOKENS
        streams = [octavo.stream(tokens, prompt=f"stream {i}: ") for i in range(STREAMS)]
        for stream in streams:
            stream.begun(1)
        time.sleep(scene.amount.pause)
        octavo.child("octavo-engine").kill()
        killed = time.perf_counter()
        time.sleep(0.05)  # what was already sent arrives
        before = [len(stream.pieces) for stream in streams]

        def gone_on() -> bool:
            return all(len(s.pieces) > n or s.done for s, n in zip(streams, before, strict=True))

        wait_until(gone_on, "streams to go on", 60.0)
        took = time.perf_counter() - killed
        for stream in streams:
            stream.result()
        ends = [(stream.finish_reason, stream.error) for stream in streams]
        assert all(end == ("length", None) for end in ends), f"streams ended with {ends}"
    finally:
        octavo.close()
    return Figure(RESUME + f", until {STREAMS} streams go on", name, "s", took)


def llama_1b(scene: Scene) -> Iterator[Callable[[], Figure]]:
    name = "Llama-3.2-1B"
    folder = model_folder(scene, name, weights=True)
    yield lambda: start(scene, folder, name)
    if scene.amount.repeats > 1 or scene.dry:
        yield lambda: resume(scene, folder, name)
