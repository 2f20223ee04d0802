"""Block shapes of the kernels, by the GPU's class and by size: tables kept here, not searched at start.

A class is compute capabilities that share matrix units and the shared memory of a program. All shapes are predicted
from registers, shared memory and bytes in flight as the compiled code shows them (benchmarks/results/compiled), and
wait for GPUs to be measured on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from octavo.kernels.triton.launch import capability_of, next_power_of_2


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


Table = dict[tuple[int, int], Shape]
"""By (bytes of an element of q or x, size): the first entry of these bytes whose size reaches the launch's, or the last
one."""


@dataclass(frozen=True)
class Class:
    shared: int
    """KiB that a program may take."""
    prefill: Table
    """By head_dim; m: new tokens times the heads of a KV head, n: keys."""
    decode: Table
    """By head_dim; m: the heads of a KV head, n: keys."""
    scaled: Table
    """Products with dense, int8 and fp8 weights, by tokens (m)."""
    int4: Table
    """The same with int4, of which a tile takes half the memory and more registers."""


_WIDE = 128
"""Rows of a tile of out_features that only large matrices are cut into."""
_F32_SCALED: Table = {
    (4, 32): Shape(32, 64, 64, warps=4, stages=3), (4, 128): Shape(64, 64, 32, warps=4, stages=3),
}  # fmt: skip
_F32_INT4: Table = {
    (4, 32): Shape(32, 64, 128, warps=4, stages=3), (4, 128): Shape(64, 64, 64, warps=4, stages=3),
}  # fmt: skip
_SCALED: Table = {
    (2, 32): Shape(32, 64, 64, warps=4, stages=3),
    (2, 64): Shape(64, _WIDE, 64, warps=4, stages=3),
    (2, 128): Shape(128, _WIDE, 64, warps=8, stages=3),
    **_F32_SCALED,
}
_INT4: Table = {
    (2, 32): Shape(32, 64, 128, warps=4, stages=3),
    (2, 64): Shape(64, _WIDE, 128, warps=4, stages=3),
    (2, 128): Shape(128, _WIDE, 64, warps=8, stages=3),
    **_F32_INT4,
}
_DECODE: Table = {
    (2, 64): Shape(16, 128, stages=3),
    (2, 128): Shape(16, 64, stages=3, registers=128),
    (2, 256): Shape(16, 32, stages=3),
    (4, 64): Shape(16, 64, stages=3),
    (4, 128): Shape(16, 32, stages=3),
    (4, 256): Shape(16, 16, warps=8, stages=3),
}
"""Enough bytes in flight for the memory: 64 keys of 128 features in bf16 are 16 KiB a stage for each of K, V. Four
programs on a multiprocessor: heads of 64 take few enough registers by themselves."""
_F32_PREFILL: Table = {
    (4, 64): Shape(64, 16, warps=4), (4, 128): Shape(32, 32, warps=4), (4, 256): Shape(16, 16, warps=8),
}  # fmt: skip

# Sums and operands of a product are in registers (mma.sync).
_AMPERE = Class(
    shared=163,
    prefill={(2, 64): Shape(128, 64, warps=8), (2, 128): Shape(128, 32, warps=8), (2, 256): Shape(64, 32, warps=8),
             **_F32_PREFILL},
    decode=_DECODE,
    scaled=_SCALED,
    int4={**_INT4, (2, 64): Shape(64, _WIDE, 128, warps=8, stages=3)},
)  # fmt: skip
# Products read shared memory; of Hopper sums are in registers (wgmma), of Blackwell in memory of their own (tcgen05).
_HOPPER = Class(
    shared=227,
    prefill={(2, 64): Shape(128, 128, warps=8), (2, 128): Shape(128, 64, warps=8), (2, 256): Shape(128, 32, warps=8),
             **_F32_PREFILL},
    decode=_DECODE,
    scaled=_SCALED,
    int4=_INT4,
)  # fmt: skip
CLASSES: dict[int, Class] = {
    80: _AMPERE,
    86: replace(_AMPERE, shared=99),
    89: replace(_AMPERE, shared=99),
    90: _HOPPER,
    100: _HOPPER,
    120: replace(_AMPERE, shared=99),
}
"""By compute capability, ten times: of one between two, the one below."""


def class_of(device: torch.device) -> Class:
    """Raises KeyError below the least capability, which the registry has refused."""
    have = capability_of(device)
    return CLASSES[max((known for known in CLASSES if known <= have), default=have)]


def _of(table: Table, itemsize: int, size: int) -> Shape:
    fitting = [(most, shape) for (of_bytes, most), shape in table.items() if of_bytes == itemsize]
    return next((shape for most, shape in fitting if size <= most), fitting[-1][1])


def precision(dtype: torch.dtype) -> str:
    """Of tl.dot: f32 as three products of tf32, exact to about 2^-21, since in plain f32 it leaves the matrix units."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def prefill_shape(device: torch.device, head_dim: int, group: int, itemsize: int) -> Shape:
    shape = _of(class_of(device).prefill, itemsize, head_dim)
    return replace(shape, m=max(shape.m, next_power_of_2(group)))


def decode_shape(device: torch.device, head_dim: int, group: int, itemsize: int) -> Shape:
    shape = _of(class_of(device).decode, itemsize, head_dim)
    wide = group > shape.m
    return replace(shape, m=next_power_of_2(group), registers=None) if wide else shape


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
    """Of all classes, since it is bound by memory: 16 weight rows a program, 16 bytes a thread and load along k; fewer
    rows where that leaves the device with too few programs."""
    rows = 16 if n >= 4096 else 8 if n >= 1024 else 4
    width = {"dense": 256, "int8": 512, "int4": 1024}[kind]
    return Shape(1, rows, min(width, next_power_of_2(k)), warps=4, stages=3)


def matmul_shape(device: torch.device, tokens: int, n: int, k: int, itemsize: int, int4: bool = False) -> Shape:
    """The smallest tile that holds all tokens, up to the table's, so that the weight is read once for each so many; of
    few out_features a narrow one, so that there are more programs."""
    gpu = class_of(device)
    shape = _of(gpu.int4 if int4 else gpu.scaled, itemsize, tokens)
    m = min(max(next_power_of_2(tokens), 16), shape.m)
    return replace(shape, m=m, n=shape.n if n >= 4096 else 64, k=min(shape.k, next_power_of_2(k)))


def matmul_splits(programs: int, k: int, processors: int) -> int:
    """Parts of in_features, so that every multiprocessor has a program, each with 1,024 of them or more."""
    splits = 1
    while programs * splits < processors and k >= 2048 * splits and splits < 8:
        splits *= 2
    return splits
