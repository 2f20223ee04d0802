"""Block shapes of the kernels, by size: tables kept here, not searched at start. Used by the kernels beside it.

Where a table says so its entries were measured (benchmarks/results/h200); the others are predicted from registers and
shared memory and wait for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.kernels.triton.launch import next_power_of_2


@dataclass(frozen=True)
class Shape:
    """Tile sizes of one launch, its warps and the depth of its software pipeline."""

    m: int
    n: int
    k: int = 0
    warps: int = 4
    stages: int = 2
    registers: int | None = None
    """Of a thread at most; None: as the compiler likes."""

    @property
    def options(self) -> dict[str, int]:
        """Of a launch."""
        found = {"num_warps": self.warps, "num_stages": self.stages}
        return found if self.registers is None else {**found, "maxnreg": self.registers}


def precision(dtype: torch.dtype) -> str:
    """Of tl.dot: f32 as three products of tf32, exact to about 2^-21, since in plain f32 it leaves the matrix units."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def prefill_shape(head_dim: int, group: int, itemsize: int) -> Shape:
    """Predicted: q and two stages of K and V within 227 KiB, the f32 sums within a warp's registers (compiled.md).
    `itemsize`: of an element of q."""
    if itemsize == 4:
        m, n = (64, 32) if head_dim <= 64 else (32, 32 if head_dim <= 128 else 16)
    else:
        m, n = 128, 128 if head_dim <= 64 else 64 if head_dim <= 128 else 32
    m = max(m, next_power_of_2(group))
    return Shape(m, n, warps=4 if m <= 64 and head_dim <= 128 else 8, stages=2)


def decode_shape(head_dim: int, group: int, itemsize: int) -> Shape:
    """Predicted: enough bytes in flight for the memory: 64 keys of 128 features in bf16 are 16 KiB a stage for each of
    K, V; and four programs on a multiprocessor where registers allow it without spills."""
    n = (128 if head_dim <= 64 else 64 if head_dim <= 128 else 32) // (2 if itemsize == 4 else 1)
    four = itemsize < 4 and 64 < head_dim <= 128 and group <= 16  # heads of 64 take fewer by themselves
    return Shape(max(16, next_power_of_2(group)), n, warps=4, stages=3, registers=128 if four else None)


LEAST_KEYS = 128
"""Predicted: of one part of a split context. What a part costs beyond its keys is about as much as so many."""
LONG_KEYS = 4096
"""Predicted: more than a program should read alone while others, with shorter contexts, have ended."""
MOST_SPLITS = 64
_MOST_PROGRAMS = 2048


def decode_splits(rows: int, kv_heads: int, max_context: int, processors: int) -> tuple[int, int]:
    """(parts of a row's context, parts of a long one) at most: enough programs to fill the device twice; and for
    contexts of several LONG_KEYS as many as cost little when nobody needs them. The same for all numbers of rows up to
    a power of two, and cut by the longest context only where no row could use them: batches of one size split a row's
    context alike, captured or not."""
    programs = max(next_power_of_2(rows) * kv_heads, 1)
    parts = min(next_power_of_2(-(-2 * processors // programs)), max_context // LEAST_KEYS, MOST_SPLITS)
    of_long = min(_MOST_PROGRAMS // programs, max_context // LONG_KEYS, MOST_SPLITS)
    return max(parts, 1), max(parts, of_long, 1)


def row_shape(kind: str, n: int, k: int) -> Shape:
    """Predicted: 16 weight rows a program, 16 bytes a thread and load along k; fewer rows where that leaves the device
    with too few programs."""
    rows = 16 if n >= 4096 else 8 if n >= 1024 else 4
    width = {"dense": 256, "int8": 512, "int4": 1024}[kind]
    return Shape(1, rows, min(width, next_power_of_2(k)), warps=4, stages=3)


def matmul_shape(tokens: int, n: int, k: int, int4: bool = False) -> Shape:
    """Predicted: the smallest tile that holds all tokens, up to 128, so that the weight is read once for each 128;
    of int4 twice as wide where registers allow it, 64 bytes of a row."""
    m = min(max(next_power_of_2(tokens), 16), 128)
    width = min(128 if int4 and m <= 64 else 64, next_power_of_2(k))
    return Shape(m, 128 if n >= 4096 and m >= 64 else 64, width, warps=8 if m >= 128 else 4, stages=3)


def matmul_splits(programs: int, k: int, processors: int) -> int:
    """Predicted: parts of in_features, so that every multiprocessor has a program, each with 1,024 of them or more."""
    splits = 1
    while programs * splits < processors and k >= 2048 * splits and splits < 8:
        splits *= 2
    return splits
