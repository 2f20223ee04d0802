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
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "pure"))
from served import Octavo, wait_until

STREAMS, TOKENS = 8, 900


def command(scene: Scene, folder: Path) -> Octavo:
    options = ["--device", scene.device, "--dtype", "bfloat16", "--port", "0", "--max-num-seqs", "256"]
    if scene.dry:
        options += ["--kv-cache-memory", "4MiB", "--max-model-len", "1024", "--threads", "1"]
    elif scene.amount.kv_pages:
        options += ["--kv-cache-memory", scene.amount.kv_pages]
    return Octavo(scene.folder, "serve", str(folder), *options)


def first_words(octavo: Octavo) -> str:
    """The log lines of a start."""
    return octavo.output[-4000:]


class Served:
    """The last start goes on to serve."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.name = scene, name
        self.folder = model_folder(scene, name, weights=True)
        self.octavo: Octavo | None = None

    def close(self) -> None:
        if self.octavo is not None:
            self.octavo.close()

    def start(self) -> Figure:
        """Of two starts the second: then the page cache holds the file and no kernel is compiled."""
        seconds, log = [], ""
        for _ in range(1 if self.scene.amount.repeats == 1 else 2):
            self.close()
            began = time.perf_counter()
            self.octavo = command(self.scene, self.folder).started()
            seconds.append(time.perf_counter() - began)
            log = first_words(self.octavo)
        size = (self.folder / "model.safetensors").stat().st_size
        details = {"starts": seconds, "file_bytes": size, "log": log}
        return Figure(START, self.name, "s", seconds[-1], details=details)

    def resume(self) -> Figure:
        """Seconds from the engine's death to the next token of all streams, which all end as they were asked to."""
        octavo = self.octavo
        assert octavo is not None
        tokens = 40 if self.scene.dry else TOKENS
        streams = [octavo.stream(tokens, prompt=f"stream {i}: ") for i in range(STREAMS)]
        for stream in streams:
            stream.begun(1)
        time.sleep(self.scene.amount.pause)
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
        return Figure(f"{RESUME}, until {STREAMS} streams go on", self.name, "s", took)


def llama_1b(scene: Scene) -> Iterator[Callable[[], Figure]]:
    served = Served(scene, "Llama-3.2-1B")
    try:
        yield served.start
        if scene.amount.repeats > 1 or scene.dry:
            yield served.resume
    finally:
        served.close()
