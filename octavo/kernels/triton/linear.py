"""Matrix products with weights as they lie in memory: dense, int8, fp8 and int4 by groups, times f16 or bf16 rows.

One row is bound by memory: a program streams some rows of the weight once, multiplies on the plain units and adds up
in f32. More rows go to the matrix units: a tile of the weight is made dense in registers on its way. Where tiles are
fewer than multiprocessors, in_features are split over programs and a second kernel adds their sums up. No atomics: the
same row gives the same result in every launch of the same shape.

Int4 is repacked at load: byte j of a group's half holds element j in its low and element j + group / 2 in its high
half, so both halves meet neighbouring elements of x. 16 bytes, one load of one thread, are one group of 32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.capability import FP8_FROM
from octavo.kernels.layouts import Float8Groups, Int4Groups, Int8Groups
from octavo.kernels.triton.launch import capability_of, check_device, processors
from octavo.kernels.triton.shapes import matmul_shape, matmul_splits, precision, row_shape
from octavo.kernels.triton.tiles import int4_bits, int4_pair, int4_sums, of_bytes, scaled_sums, store_tile

MOST_OF_GROUP = 512
"""Larger groups are cut, their scales repeated, unless they are the whole row."""

_COLUMNS = 1024
ONE = 0x3F800000
"""The bits of 1.0; see tiles.int4_pair."""


@dataclass(frozen=True)
class GroupedInt4:
    """Int4Groups as the kernels here read them."""

    packed: Tensor  # [out, in / 2] uint8, see the module
    scales: Tensor  # [out, in / group]
    minimums: Tensor  # [out, in / group]

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.packed.shape[1] * 2

    @property
    def group(self) -> int:
        return self.packed.shape[1] * 2 // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes + self.minimums.nbytes

    @classmethod
    def pack(cls, weight: Int4Groups) -> GroupedInt4:
        weight = _cut(weight)
        out, half = weight.packed.shape
        q = torch.stack((weight.packed & 15, weight.packed >> 4), dim=-1).view(out, -1, 2, weight.group // 2)
        return cls((q[:, :, 0] | (q[:, :, 1] << 4)).reshape(out, half).contiguous(), weight.scales, weight.minimums)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        out = self.packed.shape[0]
        bytes_ = self.packed.view(out, -1, 1, self.group // 2)
        q = torch.cat((bytes_ & 15, bytes_ >> 4), dim=2).reshape(out, -1, self.group).float()
        return (q * self.scales.float().unsqueeze(-1) + self.minimums.float().unsqueeze(-1)).view(out, -1).to(dtype)


Scaled = Int8Groups | Float8Groups


def known_groups(weight: Scaled) -> Scaled:
    """With groups that the kernels know: a power of two, at most MOST_OF_GROUP, or the whole row."""
    times = 1 if weight.scales.shape[1] == 1 else weight.group // _power_of_two(weight.group)
    return type(weight)(weight.q.contiguous(), weight.scales.repeat_interleave(times, dim=1).contiguous())


def _cut(weight: Int4Groups) -> Int4Groups:
    times = weight.group // _power_of_two(weight.group)
    scales, minimums = (x.repeat_interleave(times, dim=1).contiguous() for x in (weight.scales, weight.minimums))
    return Int4Groups(weight.packed, scales, minimums)


def _power_of_two(group: int) -> int:
    """The largest power of two that divides the group, at most MOST_OF_GROUP."""
    return min(group & -group, MOST_OF_GROUP)


def group_of(weight: Scaled | GroupedInt4) -> int:
    """GROUP of the kernels: 0 for one scale a row."""
    return 0 if weight.scales.shape[1] == 1 and not isinstance(weight, GroupedInt4) else weight.group


# --- one row


@triton.jit
def _dense_row_kernel(x, w, bias, out, n, k, BIAS: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows = tl.program_id(0) * N + tl.arange(0, N)
    sums = tl.zeros([N, K], tl.float32)
    for start in range(0, k, K):
        columns = start + tl.arange(0, K)
        inside = columns < k
        at = w + rows.to(tl.int64)[:, None] * k + columns[None, :]
        weights = tl.load(at, mask=(rows < n)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        sums += weights * tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    value = tl.sum(sums, 1)
    if BIAS:
        value += tl.load(bias + rows, mask=rows < n, other=0.0).to(tl.float32)
    tl.store(out + rows, value.to(out.dtype.element_ty), mask=rows < n)


@triton.jit
def _scaled_row_kernel(
    x, q, scales, bias, out, n, k, GROUP: tl.constexpr, BIAS: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    """int8 or fp8; GROUP 0: one scale for the whole row."""
    rows = tl.program_id(0) * N + tl.arange(0, N)
    FOLD: tl.constexpr = GROUP if GROUP > 0 else 16
    GROUPS: tl.constexpr = K // FOLD
    sums = tl.zeros([N, GROUPS], tl.float32)
    for start in range(0, k, K):
        columns = start + tl.arange(0, K)
        inside = columns < k
        at = q + rows.to(tl.int64)[:, None] * k + columns[None, :]
        weights = of_bytes(tl.load(at, mask=(rows < n)[:, None] & inside[None, :], other=0.0)).to(tl.float32)
        products = weights * tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        of_groups = tl.sum(tl.reshape(products, [N, GROUPS, FOLD]), 2)
        if GROUP > 0:
            groups = start // GROUP + tl.arange(0, GROUPS)
            at = scales + rows.to(tl.int64)[:, None] * (k // GROUP) + groups[None, :]
            scale = tl.load(at, mask=(rows < n)[:, None] & (groups < k // GROUP)[None, :], other=0.0).to(tl.float32)
            of_groups *= scale
        sums += of_groups
    value = tl.sum(sums, 1)
    if GROUP == 0:
        value *= tl.load(scales + rows, mask=rows < n, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + rows, mask=rows < n, other=0.0).to(tl.float32)
    tl.store(out + rows, value.to(out.dtype.element_ty), mask=rows < n)


@triton.jit
def _int4_row_kernel(
    x, packed, scales, minimums, bias, out, n, k, half, one, GROUP: tl.constexpr, BIAS: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    """half: k / 2, an argument of its own so that the compiler sees that 16 divides it and loads 16 bytes at once; one:
    see tiles.int4_pair."""
    rows = tl.program_id(0) * N + tl.arange(0, N)
    GROUPS: tl.constexpr = K // GROUP
    HALF: tl.constexpr = GROUP // 2
    words = packed.to(tl.pointer_type(tl.int32))
    sums = tl.zeros([N, GROUPS], tl.float32)
    for start in range(0, half, K // 2):
        places = start + tl.arange(0, K // 2)
        inside = places < half
        fours = start // 4 + tl.arange(0, K // 8)
        at = words + rows.to(tl.int64)[:, None] * (half // 4) + fours[None, :]
        bits = int4_bits(tl.load(at, mask=(rows < n)[:, None] & (fours < half // 4)[None, :], other=0), N, K // 2)
        columns = places // HALF * GROUP + places % HALF
        low = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(x + columns + HALF, mask=inside, other=0.0).to(tl.float32)
        first, second = int4_pair(bits, one)  # 1 + low half / 256, 1 + high half / 16
        # Products are added up one by one, so that each is one operation with its sum.
        of_low = tl.sum(tl.reshape(first * low[None, :], [N, GROUPS, HALF]), 2)
        of_high = tl.sum(tl.reshape(second * high[None, :], [N, GROUPS, HALF]), 2)
        low_sum = tl.sum(tl.reshape(low, [GROUPS, HALF]), 1)
        high_sum = tl.sum(tl.reshape(high, [GROUPS, HALF]), 1)
        groups = start // HALF + tl.arange(0, GROUPS)
        there = (rows < n)[:, None] & (groups < k // GROUP)[None, :]
        at = rows.to(tl.int64)[:, None] * (k // GROUP) + groups[None, :]
        scale = tl.load(scales + at, mask=there, other=0.0).to(tl.float32)
        minimum = tl.load(minimums + at, mask=there, other=0.0).to(tl.float32)
        of_groups = 256 * (of_low - low_sum[None, :]) + 16 * (of_high - high_sum[None, :])
        sums += of_groups * scale + (low_sum + high_sum)[None, :] * minimum
    value = tl.sum(sums, 1)
    if BIAS:
        value += tl.load(bias + rows, mask=rows < n, other=0.0).to(tl.float32)
    tl.store(out + rows, value.to(out.dtype.element_ty), mask=rows < n)


# --- more rows


@triton.jit
def _part(k, K: tl.constexpr):
    """(first, end) of the in_features of this program: whole Ks."""
    each = tl.cdiv(tl.cdiv(k, K), tl.num_programs(2)) * K
    begin = tl.program_id(2) * each
    return begin, tl.minimum(begin + each, k)


@triton.jit
def _store(sums, bias, out, tokens, m, rows, n, stride, BIAS: tl.constexpr, SPLIT: tl.constexpr):
    """SPLIT: out [parts, m, n] f32, to be joined."""
    if SPLIT:
        part = out + (tl.program_id(2).to(tl.int64) * m + tokens)[:, None] * n
        store_tile(sums, bias, part, tokens < m, rows, rows < n, False)
    else:
        store_tile(sums, bias, out + tokens[:, None] * stride, tokens < m, rows, rows < n, BIAS)


@triton.jit(do_not_specialize=["m"])
def _scaled_kernel(
    x, q, scales, bias, out, m, n, k, x_stride, out_stride, GROUP: tl.constexpr, BIAS: tl.constexpr,
    SPLIT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(1).to(tl.int64) * M + tl.arange(0, M)
    rows = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    at = x + tokens[:, None] * x_stride
    begin, end = _part(k, K)
    sums = scaled_sums(at, tokens < m, q, scales, rows, rows < n, k, begin, end, GROUP, M, N, K, PRECISION)
    _store(sums, bias, out, tokens, m, rows, n, out_stride, BIAS, SPLIT)


@triton.jit(do_not_specialize=["m"])
def _int4_kernel(
    x, packed, scales, minimums, bias, out, m, n, k, half, one, x_stride, out_stride, GROUP: tl.constexpr,
    BIAS: tl.constexpr, SPLIT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(1).to(tl.int64) * M + tl.arange(0, M)
    rows = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    at, shown, there = x + tokens[:, None] * x_stride, tokens < m, rows < n
    begin, end = _part(k, K)
    sums = int4_sums(at, shown, packed, scales, minimums, rows, there, k, half, one, begin, end, GROUP, M, N, K,
                     PRECISION)  # fmt: skip
    _store(sums, bias, out, tokens, m, rows, n, out_stride, BIAS, SPLIT)


@triton.jit(do_not_specialize=["m", "splits"])
def _join_kernel(parts, bias, out, m, n, splits, out_stride, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    token, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for part in range(splits):
        sums += tl.load(parts + (part * m + token) * n + columns, mask=columns < n, other=0.0)
    if BIAS:
        sums += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)
    tl.store(out + token * out_stride + columns, sums.to(out.dtype.element_ty), mask=columns < n)


def dense_row(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x [1, in] @ weight [out, in].T into out [1, out]."""
    n, k = weight.shape
    shape = row_shape("dense", n, k)
    _dense_row_kernel[(triton.cdiv(n, shape.n),)](
        x, weight, out if bias is None else bias, out, n, k, BIAS=bias is not None, N=shape.n, K=shape.k,
        **shape.options,
    )  # fmt: skip


def grouped(x: Tensor, weight: Scaled | GroupedInt4, bias: Tensor | None, out: Tensor) -> None:
    """x [tokens, in] with contiguous rows @ weight.T into out [tokens, out], whose rows are contiguous. The weight's
    groups are as `known_groups` makes them."""
    check_device(x, weight.scales, out)
    assert x.stride(1) == 1 and out.stride(1) == 1
    tokens, (n, k) = x.shape[0], weight.shape
    group, int4 = group_of(weight), isinstance(weight, GroupedInt4)
    tensors, sizes = arguments(weight)
    given = bias is not None
    tensors = (*tensors, out if bias is None else bias)
    if tokens == 1:
        shape = row_shape("int4" if int4 else "int8", n, k)
        (_int4_row_kernel if int4 else _scaled_row_kernel)[(triton.cdiv(n, shape.n),)](
            x, *tensors, out, n, *sizes, GROUP=group, BIAS=given, N=shape.n, K=max(shape.k, group), **shape.options
        )  # fmt: skip
    elif tokens:
        shape = matmul_shape(x.device, tokens, n, k, x.itemsize, int4)
        grid = (triton.cdiv(n, shape.n), triton.cdiv(tokens, shape.m))
        splits = matmul_splits(grid[0] * grid[1], k, processors(x.device))
        parts = torch.empty((splits, tokens, n), dtype=torch.float32, device=x.device) if splits > 1 else out
        (_int4_kernel if int4 else _scaled_kernel)[(*grid, splits)](
            x, *tensors, parts, tokens, n, *sizes, x.stride(0), out.stride(0), GROUP=group, BIAS=given,
            SPLIT=splits > 1, M=shape.m, N=shape.n, K=shape.k, PRECISION=precision(x.dtype), **shape.options,
        )  # fmt: skip
        if splits > 1:
            _join_kernel[(tokens, triton.cdiv(n, _COLUMNS))](
                parts, tensors[-1], out, tokens, n, splits, out.stride(0), BIAS=given, BLOCK=_COLUMNS
            )


def arguments(weight: Scaled | GroupedInt4) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Of a kernel: the weight's tensors, and k with what goes with it."""
    k = weight.shape[1]
    if isinstance(weight, GroupedInt4):
        return (weight.packed, weight.scales, weight.minimums), (k, k // 2, ONE)
    return (readable(weight.q), weight.scales), (k,)


def readable(q: Tensor) -> Tensor:
    """fp8 as bytes where the GPU cannot convert it."""
    has_fp8 = capability_of(q.device) >= 10 * FP8_FROM[0] + FP8_FROM[1]
    return q if has_fp8 or q.dtype != torch.float8_e4m3fn else q.view(torch.uint8)
