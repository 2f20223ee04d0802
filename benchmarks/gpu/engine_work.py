"""What the engine check measures: figures, what is asked of them, the amounts of work, and the least time it can take.
engine_octavo.py, engine_served.py and engine_peers.py do the work; engine.py runs them. No torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sizes import MODELS, Model

NAMED = {model.name: model for model in MODELS}
DECODE, STREAMS, PREFILL, REQUESTS = "decode, 1 stream", "decode, {} streams", "prefill of {:,}", "{} requests"
GAP, PAGES, START, RESUME = "device idle between steps, {} rows", "KV pages in use", "start to ready", "kill -9"
MEMORY = "GPU memory in use"


@dataclass(frozen=True)
class Amount:
    """How much of everything. The defaults are what is measured."""

    prompt: int = 128
    output: int = 512
    repeats: int = 3
    prefill: int = 8192
    streams: int = 64
    requests: int = 256
    prompts: tuple[int, int] = (16, 256)
    outputs: tuple[int, int] = (100, 1024)
    """Least and greatest lengths of the requests, drawn evenly."""
    rows: tuple[int, ...] = (1, 8, 32, 64, 128, 256)
    gap_steps: int = 64
    kv_pages: str | None = None
    """Memory for KV pages; None: what the engine finds."""
    page_tokens: int = 65536
    page_longest: int = 1024
    """Room of the pages that too many requests share, and tokens of the longest of these."""
    pause: float = 1.0
    """Seconds before a kill."""


WARM = Amount(
    output=16, repeats=1, gap_steps=2, outputs=(16, 16), kv_pages="6GiB", page_tokens=2048, page_longest=256, pause=0.1
)
"""Meets every kernel and shape once, so that what is timed later compiles nothing."""
DRY = Amount(
    prompt=6, output=8, repeats=1, prefill=40, streams=3, requests=6, prompts=(3, 12), outputs=(3, 12),
    rows=(1, 3), gap_steps=2, kv_pages="1MiB", page_tokens=64, page_longest=32, pause=0.1,
)  # fmt: skip
SMALL = Model("tiny", 64, 4, 2, 16, 96, 320, layers=2)
"""What the dry run has in place of every model, in its structure."""


@dataclass
class Figure:
    """One measured number; None in a dry run."""

    work: str
    model: str
    unit: str
    value: float | None
    limit: float | None = None
    """What memory and matrix units would allow, in the same unit."""
    bound: str = ""
    """By which of both: memory, matmul."""
    engine: str = "octavo"
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """What is asked: `of` is the value or its share of the limit; at least `number`, or less than that."""

    of: str
    number: float
    words: str
    less: bool = False

    def met(self, value: float | None, share: float | None) -> bool | None:
        found = value if self.of == "value" else share
        if found is None:
            return None
        return found < self.number if self.less else found >= self.number


def goal(work: str, model: str) -> Goal | None:
    small = model in ("Llama-3.2-1B", "Qwen3-0.6B")
    asked = {
        (DECODE, "Llama-3.2-1B"): Goal("value", 1300, "1,300 tok/s"),
        (PREFILL.format(8192), "Llama-3.2-1B"): Goal("share", 0.6, "60% of matmul rate"),
        (DECODE, "Llama-3.1-8B"): Goal("share", 0.75, "75% of limit"),
        (STREAMS.format(64), "Llama-3.1-8B"): Goal("share", 0.6, "60% of limit"),
        (START, "Llama-3.2-1B"): Goal("value", 10, "under 10 s", less=True),
    }
    if small and work == REQUESTS.format(256):
        return Goal("value", 40000, "40,000 tok/s")
    if work.startswith(GAP.partition(",")[0]):
        return Goal("value", 0.03, "under 3% of the step", less=True)
    if work == PAGES:
        return Goal("value", 0.96, "96% of those paid for")
    return asked.get((work, model))


@dataclass(frozen=True)
class Rates:
    """What the device can do, measured: bytes a second copied (read and written), operations a second."""

    copy: float
    matmul: float


def decode_limit(model: Model, rows: int, context: int, rates: Rates) -> tuple[float, str]:
    """Seconds of a step of one new token for each row at least; `context`: tokens of all rows. → also what binds."""
    moved = model.decode_bytes(context) / rates.copy
    computed = model.decode_operations(rows, context) / rates.matmul
    return max(moved, computed), "memory" if moved >= computed else "matmul"


def requests_limit(model: Model, lengths: Sequence[tuple[int, int]], rates: Rates) -> float:
    """Seconds that prompts and outputs of these lengths need at least, all of them running from the first step on."""
    seconds = sum(model.prefill_operations(prompt) for prompt, _ in lengths) / rates.matmul
    left = sorted(lengths, key=lambda pair: pair[1])
    context = sum(prompt for prompt, _ in left)
    for step in range(1, left[-1][1]):  # the first token comes with the prompt
        while left[0][1] <= step:
            context -= left[0][0] + step - 1
            left.pop(0)
        context += len(left)
        seconds += decode_limit(model, len(left), context, rates)[0]
    return seconds


@dataclass
class Scene:
    """Where and how one process of the check works."""

    device: str
    folder: Path
    """For model folders."""
    amount: Amount
    rates: Rates | None
    dry: bool = False
    """Tiny sizes, on the CPU."""
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def model(self, name: str) -> Model:
        return SMALL if self.dry else NAMED[name]

    def prompt(self, model: Model, length: int) -> list[int]:
        """Random tokens, none of the first and last, which may have a meaning."""
        return [self.random.randrange(3, model.vocab - 64) for _ in range(length)]

    def lengths(self) -> list[tuple[int, int]]:
        """(prompt, output) of the many requests, the same in every process."""
        draw, amount = random.Random(1), self.amount
        return [(draw.randint(*amount.prompts), draw.randint(*amount.outputs)) for _ in range(amount.requests)]
