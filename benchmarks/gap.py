"""How much streams feel a long prompt: gaps between their tokens before it and while it is computed.

Usage: python benchmarks/gap.py [--model MODEL] [--streams 1,8,31] [--prompt-len 1800] [--json FILE]

An engine in this process. For each number of streams: they decode for a while, then the prompt comes, several times.
`ratio` is p99 while the prompt is computed over p99 before it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from octavo.bench.driver import Bench
from octavo.bench.report import document, percentile, spread_ms
from octavo.client.base import Prompt
from octavo.client.local import IDLE_S, LocalRequest
from octavo.config.engine import DEFAULT_MODEL, EngineConfig
from octavo.types import SamplingParams

STREAM_PROMPT = 64
QUIET_STEPS = 150
ROUNDS = 4


class Streams:
    """Requests that decode, and when each of their tokens came."""

    def __init__(self, bench: Bench, count: int) -> None:
        self._engine = bench.engine
        self._bench = bench
        self._requests = [self.start(STREAM_PROMPT, 100_000) for _ in range(count)]
        self._last: dict[LocalRequest, float] = {}

    def start(self, prompt_len: int, max_tokens: int) -> LocalRequest:
        ids = [self._bench._random.randrange(100, 10_000) for _ in range(prompt_len)]
        limit = min(max_tokens, self._engine.info.max_model_len - prompt_len)
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=limit)
        request = self._engine.prepare(Prompt(token_ids=ids), params)
        self._engine.start(request)
        return request

    def turn(self) -> list[float]:
        """One turn of the engine; → the gaps, in seconds, that ended in it."""
        touched = self._engine.dispatch(self._engine.turn(IDLE_S))
        now = time.perf_counter()
        gaps = []
        for request in touched:
            request.deltas.clear()
            if request in self._last:
                gaps.append(now - self._last[request])
            if request in self._requests:
                self._last[request] = now
        return gaps

    def stop(self) -> None:
        for request in self._requests:
            self._engine.abort(request)
        for _ in range(3):
            self._engine.turn(0)


def measure(bench: Bench, count: int, prompt_len: int) -> dict[str, Any]:
    streams = Streams(bench, count)
    for _ in range(20 + count):
        streams.turn()
    before: list[float] = []
    during: list[float] = []
    ttft: list[float] = []
    for _ in range(ROUNDS):
        for _ in range(QUIET_STEPS // ROUNDS):
            before += streams.turn()
        began = time.perf_counter()
        request = streams.start(prompt_len, 1)
        while not request.ended:
            during += streams.turn()
        ttft.append(time.perf_counter() - began)
        streams.turn()
    streams.stop()
    usual, felt = percentile(before, 99), percentile(during, 99)
    return {
        "before_ms": spread_ms(before),
        "during_ms": spread_ms(during),
        "ratio": round(felt / usual, 2),
        "prompt_ttft_ms": spread_ms(ttft),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--streams", default="1,8,31")
    parser.add_argument("--prompt-len", type=int, default=1800)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    config = EngineConfig(model=asked.model, kv_cache_memory="2GiB")  # nobody is to wait for pages
    bench = Bench(config, STREAM_PROMPT, 8)
    try:
        bench.run(1)
        figures = {n: measure(bench, int(n), asked.prompt_len) for n in asked.streams.split(",")}
        for count, found in figures.items():
            print(count, json.dumps(found))
        if asked.json:
            load = {"prompt_len": asked.prompt_len, "rounds": ROUNDS}
            found = document("gap", {"streams": figures}, load, config=bench.config, engine=bench.engine.info)
            asked.json.write_text(json.dumps(found, indent=2) + "\n")
    finally:
        bench.close()


if __name__ == "__main__":
    main()
