"""The work that every peer does, and how it is counted. Standard library only: each peer's own Python imports it.

A peer's script loads its model and hands `measure` one function, run(streams, input_len, output_len) → Run: so many
prompts of so many tokens given at once, each answered with exactly so many tokens, chosen greedily, nothing cached from
earlier runs. Everything about warming up, repeating and counting stands here, the same for all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STARTED = time.perf_counter()
SEED = 0
WARM_UP_INPUT, WARM_UP_OUTPUT = 16, 4


@dataclass(frozen=True)
class Work:
    """`repeat`: measured runs in one process, of which the median counts."""

    title: str
    streams: int
    input_len: int
    output_len: int
    repeat: int

    @property
    def counts_input(self) -> bool:
        """Whether the figure is prompt tokens a second (until the first token), or output tokens a second."""
        return self.output_len == 1


WORK = {
    "prefill": Work("prefill of 512", 1, 512, 1, 3),
    "decode": Work("decode, 1 stream", 1, 8, 128, 3),
    "batch8": Work("8 x (128, 128)", 8, 128, 128, 1),
    "batch32": Work("32 x (128, 128)", 32, 128, 128, 1),
}
"""Tokens a second: of the prompt over the time to the first token (prefill), of all output over the whole time, prompts
included (the rest)."""


@dataclass(frozen=True)
class Run:
    input_tokens: int
    output_tokens: int
    seconds: float


def threads() -> int:
    """The cores this process may use; every peer computes with as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prompts(streams: int, length: int, vocab_size: int, first: int = 10) -> list[list[int]]:
    """Random token ids, other ones at each call. Low ids are left out: most vocabularies begin with special tokens."""
    return [[_random.randrange(first, vocab_size) for _ in range(length)] for _ in range(streams)]


def arguments(description: str | None) -> argparse.Namespace:
    """`model` and `work` (names of WORK), as compare.py gives them to every peer; further words in `options`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path)
    parser.add_argument("options", nargs="*", help="what the peer's script documents")
    parser.add_argument("--work", type=lambda names: names.split(","), default=list(WORK))
    return parser.parse_args()


def measure(run: Callable[[int, int, int], Run], names: list[str], versions: dict[str, str]) -> None:
    """Prints one JSON line per figure: load_s (from the start of Python until now), versions, and each work's rate."""
    emit("load_s", round(time.perf_counter() - STARTED, 2))
    emit("versions", versions)
    for name in names:
        work = WORK[name]
        run(work.streams, WARM_UP_INPUT, WARM_UP_OUTPUT)
        if work.counts_input:
            run(work.streams, work.input_len, work.output_len)
        rates = [_rate(work, run(work.streams, work.input_len, work.output_len)) for _ in range(work.repeat)]
        emit(name, round(statistics.median(rates), 2))


def emit(figure: str, value: object) -> None:
    print(json.dumps({"figure": figure, "value": value}), flush=True)


def _rate(work: Work, run: Run) -> float:
    wanted = work.streams * work.output_len
    if run.output_tokens != wanted:
        sys.exit(f"{run.output_tokens} tokens came out instead of {wanted}")
    return (run.input_tokens if work.counts_input else run.output_tokens) / run.seconds


_random = random.Random(SEED)
