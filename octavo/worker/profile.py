"""How much memory a step takes at its largest: dummy rows through the real path, measured. Called by worker/worker
before KV pages are sized.

All dummy pages are page 0, so that one page is enough to compute with any context.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import psutil

from octavo.config.resolve import ResolvedConfig
from octavo.types import SamplingParams
from octavo.wire.plan import Admit, Plan, Run
from octavo.worker.runner import Runner


def _admit(row: int, length: int, computed: int, block_size: int) -> Admit:
    pages = [0] * -(-length // block_size)
    params = SamplingParams(temperature=1.0, top_p=0.9, top_k=50)
    return Admit(row, [0] * length, length, computed, pages, params, row, [], [])


def _plans(resolved: ResolvedConfig) -> list[Plan]:
    """One prefill of the whole budget at the end of the longest context; and as many rows as run at once."""
    length, size = resolved.max_model_len, resolved.block_size
    tokens = min(resolved.max_num_batched_tokens, length)
    rows = min(resolved.max_num_seqs, resolved.max_num_batched_tokens)
    long = Plan(0, admit=[_admit(0, length, length - tokens, size)], run=[Run(0, tokens, True)])
    short = min(256, length)
    wide = Plan(1, release=[0])
    wide.admit = [_admit(row, short, short - 1, size) for row in range(rows)]
    wide.run = [Run(row, 1, True) for row in range(rows)]
    return [long, wide, Plan(2, release=list(range(rows)))]


def measure(runner: Runner, resolved: ResolvedConfig) -> int:
    """Bytes that the largest steps take beyond what is resident now."""
    before = _reset_peak()
    for plan in _plans(resolved):
        runner.run(plan)
    return max(_peak() - before, 0)


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
