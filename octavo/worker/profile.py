"""How much memory a step takes at its largest: dummy rows through the real path, measured. Called by worker/parts
before KV pages are sized.

All dummy blocks are block 0, so that one of each group is enough to compute with any context.
"""

from __future__ import annotations

import contextlib
import resource
from functools import partial
from pathlib import Path

import msgspec
import psutil

from octavo.config.resolve import ResolvedConfig
from octavo.types import SamplingParams
from octavo.wire.plan import Admit, Masks, Plan, Run
from octavo.worker.device import Device
from octavo.worker.runner import Runner

FEW_TOKENS = 16
SHORT_CONTEXT = 256
NEW_SHAPES = (2, 17, 33, 65)
"""Tokens of a step from which on a GPU's kernels take another shape (kernels/triton/shapes.py), up to the largest."""

_PLAIN = SamplingParams(temperature=1.0, top_p=0.9, top_k=50)
_ALL = msgspec.structs.replace(
    _PLAIN,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    allowed_token_ids=[0],
    logit_bias={0: 1.0},
    logprobs=20,
)
"""Whatever takes memory as wide as the vocabulary, for each row."""


def measure(runner: Runner, resolved: ResolvedConfig) -> int:
    """Bytes that the largest steps take beyond what is resident now: a prefill of the whole budget; as many rows as run
    at once; and a few tokens at the end of the longest context, whose cost is in gathering it (all of the budget there
    would take long and hold little more)."""
    length, budget = resolved.max_model_len, resolved.max_num_batched_tokens
    tokens, short = min(budget, length), min(SHORT_CONTEXT, length)
    steps = [
        [(tokens, tokens)],
        [(1, short)] * min(resolved.max_num_seqs, budget),
        [(min(FEW_TOKENS, tokens), length)],
    ]
    prefill, wide, long = (_grown(runner, plan) for plan in _dummies(resolved, runner.num_groups, steps, _PLAIN))
    return max(prefill, wide) + long


def measure_on(device: Device, runner: Runner, resolved: ResolvedConfig, vocab_size: int) -> int:
    """The same on a device. What stays there when a step is done is there before it is measured: the tables that rows
    with such settings need, libraries' workspaces, compiled kernels."""
    everything = b"\xff" * (4 * -(-vocab_size // 32))

    def run(plan: Plan) -> None:
        runner.run(plan, Masks(plan.index, tuple(everything for run in plan.run if run.samples)))
        _release(runner, plan)

    plans = device_plans(resolved, runner.num_groups)
    for plan in [*small_plans(resolved, runner.num_groups), *plans[:1]]:
        run(plan)
    return max(device.peak(partial(run, plan)) for plan in plans)


def small_plans(resolved: ResolvedConfig, groups: int = 1) -> list[Plan]:
    """One for each number of tokens, and of rows, from which on kernels take another shape: else the first request of
    that size would wait for the compiler."""
    sizes = [size for size in NEW_SHAPES if size <= resolved.max_num_batched_tokens // 2]
    tokens = [[(size, size)] for size in sizes if size <= resolved.max_model_len]
    rows = [[(2, 2)] * size for size in sizes if size <= resolved.max_num_seqs]
    return _dummies(resolved, groups, [*tokens, *rows] if resolved.max_model_len > 1 else [])


def device_plans(resolved: ResolvedConfig, groups: int = 1) -> list[Plan]:
    """The whole budget in as many rows as there can be, which all sample; the whole budget in as few, up to the end of
    the longest context; as many rows as there can be with a token each; and one token there at the end."""
    length, budget = resolved.max_model_len, resolved.max_num_batched_tokens
    many = min(resolved.max_num_seqs, budget)
    few = min(-(-budget // length), many)
    short = min(SHORT_CONTEXT, length)
    steps = [
        [(min(budget // many, length),) * 2] * many,
        [(min(budget // few, length), length)] * few,
        [(1, short)] * many,
        [(1, length)],
    ]
    return _dummies(resolved, groups, steps)


def _dummies(
    resolved: ResolvedConfig, groups: int, steps: list[list[tuple[int, int]]], params: SamplingParams = _ALL
) -> list[Plan]:
    """A plan over so many paged cache groups for each of `steps`: of each of its rows the tokens to compute, and how
    long it is then. Each finds all rows free."""
    size = resolved.block_size

    def table(length: int) -> tuple[tuple[int, ...], ...]:
        return ((0,) * -(-length // size),) * groups

    return [
        Plan(
            index,
            admit=tuple(
                Admit(row, (0,) * length, length, length - tokens, table(length), params, row, (), ())
                for row, (tokens, length) in enumerate(rows)
            ),
            run=tuple(Run(row, tokens, True) for row, (tokens, _) in enumerate(rows)),
            masked=params is _ALL,
        )
        for index, rows in enumerate(steps)
    ]


def _release(runner: Runner, plan: Plan) -> None:
    runner.run(Plan(plan.index, release=tuple(run.row for run in plan.run)))


def _grown(runner: Runner, plan: Plan) -> int:
    before = _reset_peak()
    runner.run(plan)
    grown = max(_peak() - before, 0)
    _release(runner, plan)
    return grown


def _reset_peak() -> int:
    """Resident bytes now; the kernel's high-water mark starts again from here where it lets us, else the result of
    `measure` counts the peak of loading too, which errs on the safe side."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def _peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
