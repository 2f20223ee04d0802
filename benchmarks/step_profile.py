"""Where the time of a whole step goes, operation by operation, in the engine as it runs: decode of 1, 8 and 32 streams
and a prefill of 512 tokens.

    python benchmarks/step_profile.py [--model MODEL] [--out benchmarks/results/steps --docs]

Each operation of the recorded step is timed between two barriers of the thread pool and held against its limit: the
larger of its bytes at the memory's rate and its operations at the rate of their instructions (csrc/probe.cpp). The step
is timed a second time as a whole without these clocks. Writes a table and JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from native import step_table
from peers import machine, table

from octavo.config.engine import EngineConfig
from octavo.config.hardware import detect
from octavo.config.resolve import ResolvedConfig, resolve
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.hub import fetch
from octavo.types import SamplingParams
from octavo.wire.plan import Admit, Plan, Run
from octavo.worker.worker import Worker

STREAMS = (1, 8, 32)
PROMPT, OUTPUT, PREFILL, PREFILLS = 128, 64, 512, 8

Profile = list[tuple[str, float, float, float]]
"""name, seconds, bytes, operations of each operation of a step, in order."""


@dataclass(frozen=True)
class Step:
    """One step of the engine: tokens by row, the seconds of the worker's call, and its profile when it was taken."""

    tokens: list[int]
    seconds: float
    profile: Profile


@dataclass(frozen=True)
class Line:
    """All operations of one kind in a step. `share` of their limit; None where they only move what lies in cache."""

    operation: str
    count: int
    us: float
    megabytes: float
    megaops: float
    limit_us: float
    share: float | None


class Engine:
    """The worker of one model, given plans without a scheduler. `clocks`: whether steps are profiled."""

    def __init__(self, resolved: ResolvedConfig, files: ModelFiles) -> None:
        worker: Any = Worker(resolved, files)
        self._vocab_size = worker.start().vocab_size
        self._run, self._block_size = worker.run, resolved.block_size
        self._program = worker._runner._steps.program
        self._plans = itertools.count()
        self._random = random.Random(0)
        self.clocks = False

    def steps(self, streams: int, input_len: int, output_len: int) -> list[Step]:
        """Computes the prompts one by one, then all streams together. → the steps of the longest kind: those of whole
        prompts when one token is asked for, else those that decode all streams."""
        pages = -(-(input_len + output_len) // self._block_size)
        rows = list(range(streams))
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=output_len)
        prefills = []
        for row in rows:
            ids = [self._random.randrange(10, self._vocab_size) for _ in range(input_len)]
            blocks = list(range(row * pages, (row + 1) * pages))
            admit = Admit(row, ids, input_len, 0, (blocks,), params, 0, [], [])
            prefills.append(self._step(Plan(next(self._plans), admit=[admit], run=[Run(row, input_len, True)])))
        decode = [Run(row, 1, True) for row in rows]
        decodes = [self._step(Plan(next(self._plans), run=decode)) for _ in range(output_len - 1)]
        self._run(Plan(next(self._plans), release=rows))
        return decodes or prefills

    def _step(self, plan: Plan) -> Step:
        self._program.profiling = self.clocks
        started = time.perf_counter()
        self._run(plan)
        seconds = time.perf_counter() - started
        return Step([run.num_tokens for run in plan.run], seconds, self._program.profile() if self.clocks else [])


class Names:
    """Tells products apart by their sizes. Learns from a step of one token how each matrix is stored."""

    def __init__(self, model: Path) -> None:
        facts = read_facts(fetch(EngineConfig(model=str(model))))
        at = facts.attention
        q, kv = at.num_heads * at.head_dim, at.num_kv_heads * at.head_dim
        self._names = {
            (q + 2 * kv) * facts.hidden_size: "qkv",
            q * facts.hidden_size: "o",
            facts.layers[0].mlp.inner_size * facts.hidden_size: "down",
            facts.vocab_size * facts.hidden_size: "head",
        }
        self._arithmetic: dict[int, str] = {}

    def learn(self, profile: Profile) -> None:
        for name, _, nbytes, operations in profile:
            if operations and name != "attention":
                bits = nbytes / (operations / 2)
                self._arithmetic[round(operations / 2)] = "int8" if bits < 1.6 else "bf16" if bits < 3 else "f32"

    def of(self, name: str, operations: float, tokens: int, samples: int) -> tuple[str, str | None]:
        """→ what the operation is called, and which rate of arithmetic limits it."""
        if name == "attention":
            return name, "bf16"
        for rows in (tokens, samples):
            weights = round(operations / 2 / rows)
            if operations and weights in self._arithmetic:
                return f"{name} {self._names.get(weights, '')}".strip(), self._arithmetic[weights]
        return name, None


def lines_of(steps: Sequence[Step], names: Names, limits: dict[str, float]) -> list[Line]:
    """Medians over the steps, in the order in which operations first come."""
    seconds: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, tuple[int, float, float, float, bool]] = {}
    for step in steps:
        sums: dict[str, list[Any]] = {}
        for name, taken, nbytes, operations in step.profile:
            label, arithmetic = names.of(name, operations, sum(step.tokens), len(step.tokens))
            limit = nbytes / (limits["read_gb_s"] * 1e9)
            if arithmetic is not None:
                limit = max(limit, operations / (limits[f"{arithmetic}_gops"] * 1e9))
            entry = sums.setdefault(label, [0, 0.0, 0.0, 0.0, 0.0, arithmetic is not None])
            for place, value in enumerate((1, taken, nbytes, operations, limit)):
                entry[place] += value
        for label, (count, taken, nbytes, operations, limit, limited) in sums.items():
            seconds[label].append(taken)
            facts[label] = (count, nbytes, operations, limit, limited)
    return [_line(label, statistics.median(seconds[label]), facts[label]) for label in facts]


def _line(label: str, taken: float, facts: tuple[int, float, float, float, bool]) -> Line:
    count, nbytes, operations, limit, limited = facts
    us, limit_us = round(taken * 1e6, 1), round(limit * 1e6, 1)
    share = round(limit / taken, 3) if limited else None
    return Line(label, count, us, round(nbytes / 1e6, 3), round(operations / 1e6, 2), limit_us, share)


def measure(engine: Engine, streams: int, input_len: int, output_len: int) -> tuple[list[Step], float]:
    """→ (steps with clocks, median seconds of a step without)."""
    kept: list[list[Step]] = []
    for engine.clocks in (False, True):
        repeat = PREFILLS if output_len == 1 else 1
        kept.append([step for _ in range(repeat) for step in engine.steps(streams, input_len, output_len)])
    return kept[1], statistics.median(step.seconds for step in kept[0])


def show(title: str, lines: Sequence[Line], seconds: float) -> str:
    total = sum(line.us for line in lines)
    rows = [f"{title}: {seconds * 1e6:,.0f} us a step; {total:,.0f} us in operations with clocks on"]
    for line in lines:
        share = "    -" if line.share is None else f"{line.share:5.0%}"
        rate = f"{line.megabytes / line.us * 1e3:6.1f} GB/s {line.megaops / line.us * 1e3:6.0f} GOP/s"
        rows.append(
            f"  {line.operation:16} {line.count:4} x {line.us:9.1f} us {line.us / total:6.1%}"
            f" {line.megabytes:9.2f} MB {line.megaops:9.1f} MOP {rate} {share} of the limit"
        )
    limited = sum(line.limit_us for line in lines if line.share is not None)
    rows.append(
        f"  the limits of the products and attention together: {limited:,.0f} us, {limited / seconds / 1e6:.0%}"
    )
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--out", type=Path, help="write FOLDER/MODEL.json and .txt; benchmarks/results/steps keeps ours"
    )
    parser.add_argument("--docs", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    config = EngineConfig(model=args.model, prefix_cache=False)
    files = fetch(config)
    resolved = resolve(config, detect(), read_facts(files), files.name)
    engine = Engine(resolved, files)
    limits, names = machine.limits(threads=resolved.threads), Names(files.path)
    works = [(f"decode, {n} x", n, PROMPT, OUTPUT) for n in STREAMS] + [(f"prefill of {PREFILL}", 1, PREFILL, 1)]
    texts, found = [f"{files.name}: {', '.join(f'{name} {value:g}' for name, value in limits.items())}"], {}
    for title, streams, input_len, output_len in works:
        steps, seconds = measure(engine, streams, input_len, output_len)
        if streams == 1 and output_len == OUTPUT:
            names.learn(steps[0].profile)
        lines = lines_of(steps, names, limits)
        texts.append(show(title, lines, seconds))
        found[title] = {"us": round(seconds * 1e6, 1), "operations": [asdict(line) for line in lines]}
    print("\n\n".join(texts))
    document = {"model": files.name, "limits": limits, "machine": machine.facts(), "commit": machine.commit()}
    document |= {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "steps": found}
    if args.docs:
        docs = machine.ROOT / "docs" / "performance.md"
        docs.write_text(table.put(docs.read_text(), step_table.markdown(document)))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{files.name}.json").write_text(json.dumps(document, indent=1) + "\n")
        (args.out / f"{files.name}.txt").write_text("\n\n".join(texts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
