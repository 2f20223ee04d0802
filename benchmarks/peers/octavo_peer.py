"""Octavo on a GGUF file or a safetensors folder, through the driver of `octavo bench`: an engine in this process."""

from __future__ import annotations

from work import WORK, Run, arguments, measure

import octavo
from octavo.bench.driver import Bench
from octavo.config.engine import EngineConfig


class Peer:
    def __init__(self, path: str) -> None:
        lengths = [(work.input_len, work.output_len) for work in WORK.values()]
        self._bench = Bench(EngineConfig(model=path), max(i for i, _ in lengths), max(o for _, o in lengths))
        info = self._bench.engine.info
        self.versions = {"octavo": octavo.__version__, "backend": info.backend, "dtype": info.dtype}

    def run(self, streams: int, input_len: int, output_len: int) -> Run:
        timelines = self._bench.run(streams, input_len=input_len, output_len=output_len)
        seconds = max(t.tokens[-1] for t in timelines) - timelines[0].started
        return Run(streams * input_len, sum(len(t.tokens) for t in timelines), seconds)


if __name__ == "__main__":
    args = arguments(__doc__)
    peer = Peer(str(args.model))
    measure(peer.run, args.work, peer.versions)
