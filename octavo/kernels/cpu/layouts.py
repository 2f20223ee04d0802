"""Matrices as the native kernels want them: packed into tiles once at load. Made by CpuOps.prepare.

Invariant: a Packed owns its memory; the layouts it was made from may go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.cpu._native import Matrix
from octavo.kernels.layouts import Int4Groups, Int8Groups, Layout, fused_neighbours

GROUPS = (16, 32)
"""Group sizes the kernels know; multiples of the last are cut to it."""

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Packed:
    """Matrices over the same in_features, their results side by side. One, unless the parts of a fused product are
    stored in different ways."""

    parts: tuple[Matrix, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.n for part in self.parts), self.parts[0].k

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """What the kernels take the matrix for, [out, in]."""
        out = torch.empty(self.shape, dtype=dtype)
        first = 0
        for part in self.parts:
            for row in range(0, part.n, _ROWS_AT_ONCE):
                last = min(row + _ROWS_AT_ONCE, part.n)
                rows = torch.empty(last - row, part.k)
                part.unpack(row, last, rows.data_ptr())
                out[first + row : first + last] = rows
            first += part.n
        return out


def pack(parts: Sequence[Layout], dtype: torch.dtype) -> Packed:
    """Neighbours of one form become one matrix. Dense ones are taken in `dtype`, and so are fp8 ones and groups that
    the kernels do not know."""
    return Packed(tuple(_pack(part, dtype) for part in fused_neighbours(parts)))


def _pack(weight: Layout, dtype: torch.dtype) -> Matrix:
    n, k = weight.shape
    if isinstance(weight, (Int8Groups, Int4Groups)) and (weight.group in GROUPS or weight.group % GROUPS[-1] == 0):
        scales, f32 = _scales(weight.scales, weight.group)
        group = min(weight.group, GROUPS[-1])
        if isinstance(weight, Int8Groups):
            q = weight.q.contiguous()
            return Matrix.int8(q.data_ptr(), scales.data_ptr(), f32, group, n, k)
        packed = weight.packed.contiguous()
        minimums, _ = _scales(weight.minimums, weight.group)
        return Matrix.int4(packed.data_ptr(), scales.data_ptr(), minimums.data_ptr(), f32, group, n, k)
    data = weight.dequantize(dtype).contiguous()
    if dtype == torch.float16:
        return Matrix.f16(data.data_ptr(), n, k)
    make = Matrix.f32 if dtype == torch.float32 else Matrix.bf16
    return make(data.data_ptr(), n, k)


def _scales(scales: Tensor, group: int) -> tuple[Tensor, bool]:
    """Scales in a type the kernels know, one per group that they know → (them, whether they are f32)."""
    if scales.dtype == torch.bfloat16:
        scales = scales.float()  # what bf16 reaches is beyond f16
    if group > GROUPS[-1]:
        scales = scales.repeat_interleave(group // GROUPS[-1], dim=1)
    return scales.contiguous(), scales.dtype == torch.float32
