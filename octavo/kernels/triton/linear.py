"""Matrix products with weights as they lie in memory: dense, int8 and int4 by groups, multiplied by f16 or bf16 rows.

One row is bound by memory: a program streams some rows of the weight once, multiplies on the plain units and adds up
in f32. More rows go to the matrix units: a tile of the weight is made dense in registers on its way. Nothing is added
up by atomics: the same row gives the same result in every launch of the same shape.

Int4 is repacked at load: byte j of a group's half holds element j in its low and element j + group / 2 in its high
half, so both halves meet neighbouring elements of x. 16 bytes, one load of one thread, are one group of 32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.layouts import Int4Groups, Int8Groups
from octavo.kernels.triton.launch import check_device
from octavo.kernels.triton.shapes import matmul_shape, row_shape


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
        out, half = weight.packed.shape
        q = torch.stack((weight.packed & 15, weight.packed >> 4), dim=-1).view(out, -1, 2, weight.group // 2)
        return cls((q[:, :, 0] | (q[:, :, 1] << 4)).reshape(out, half).contiguous(), weight.scales, weight.minimums)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        out = self.packed.shape[0]
        bytes_ = self.packed.view(out, -1, 1, self.group // 2)
        q = torch.cat((bytes_ & 15, bytes_ >> 4), dim=2).reshape(out, -1, self.group).float()
        return (q * self.scales.float().unsqueeze(-1) + self.minimums.float().unsqueeze(-1)).view(out, -1).to(dtype)


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
def _int8_row_kernel(
    x, q, scales, bias, out, n, k, GROUP: tl.constexpr, BIAS: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    rows = tl.program_id(0) * N + tl.arange(0, N)
    GROUPS: tl.constexpr = K // GROUP
    sums = tl.zeros([N, GROUPS], tl.float32)
    for start in range(0, k, K):
        columns = start + tl.arange(0, K)
        inside = columns < k
        at = q + rows.to(tl.int64)[:, None] * k + columns[None, :]
        weights = tl.load(at, mask=(rows < n)[:, None] & inside[None, :], other=0).to(tl.float32)
        products = weights * tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        groups = start // GROUP + tl.arange(0, GROUPS)
        at = scales + rows.to(tl.int64)[:, None] * (k // GROUP) + groups[None, :]
        scale = tl.load(at, mask=(rows < n)[:, None] & (groups < k // GROUP)[None, :], other=0.0).to(tl.float32)
        sums += tl.sum(tl.reshape(products, [N, GROUPS, GROUP]), 2) * scale
    value = tl.sum(sums, 1)
    if BIAS:
        value += tl.load(bias + rows, mask=rows < n, other=0.0).to(tl.float32)
    tl.store(out + rows, value.to(out.dtype.element_ty), mask=rows < n)


@triton.jit
def _int4_row_kernel(
    x, packed, scales, minimums, bias, out, n, k, GROUP: tl.constexpr, BIAS: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * N + tl.arange(0, N)
    GROUPS: tl.constexpr = K // GROUP
    HALF: tl.constexpr = GROUP // 2
    sums = tl.zeros([N, GROUPS], tl.float32)
    for start in range(0, k, K):
        places = start // 2 + tl.arange(0, K // 2)
        inside = places < k // 2
        at = packed + rows.to(tl.int64)[:, None] * (k // 2) + places[None, :]
        pairs = tl.load(at, mask=(rows < n)[:, None] & inside[None, :], other=0)
        columns = places // HALF * GROUP + places % HALF
        low = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        high = tl.load(x + columns + HALF, mask=inside, other=0.0).to(tl.float32)
        products = (pairs & 15).to(tl.float32) * low[None, :] + (pairs >> 4).to(tl.float32) * high[None, :]
        of_minimum = tl.sum(tl.reshape(low + high, [GROUPS, HALF]), 1)
        groups = start // GROUP + tl.arange(0, GROUPS)
        there = (rows < n)[:, None] & (groups < k // GROUP)[None, :]
        at = rows.to(tl.int64)[:, None] * (k // GROUP) + groups[None, :]
        scale = tl.load(scales + at, mask=there, other=0.0).to(tl.float32)
        minimum = tl.load(minimums + at, mask=there, other=0.0).to(tl.float32)
        sums += tl.sum(tl.reshape(products, [N, GROUPS, HALF]), 2) * scale + of_minimum[None, :] * minimum
    value = tl.sum(sums, 1)
    if BIAS:
        value += tl.load(bias + rows, mask=rows < n, other=0.0).to(tl.float32)
    tl.store(out + rows, value.to(out.dtype.element_ty), mask=rows < n)


# --- more rows


@triton.jit
def _int8_kernel(
    x, q, scales, bias, out, m, n, k, x_stride, out_stride, GROUP: tl.constexpr, BIAS: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(1) * M + tl.arange(0, M)
    rows = tl.program_id(0) * N + tl.arange(0, N)
    sums = tl.zeros([M, N], tl.float32)
    for start in range(0, k, K):
        columns = start + tl.arange(0, K)
        inside = columns < k
        at = x + tokens.to(tl.int64)[:, None] * x_stride + columns[None, :]
        values = tl.load(at, mask=(tokens < m)[:, None] & inside[None, :], other=0.0)
        there = (rows < n)[None, :] & inside[:, None]
        weights = tl.load(q + rows.to(tl.int64)[None, :] * k + columns[:, None], mask=there, other=0).to(tl.float32)
        at = scales + rows.to(tl.int64)[None, :] * (k // GROUP) + columns[:, None] // GROUP
        weights *= tl.load(at, mask=there, other=0.0).to(tl.float32)
        sums = tl.dot(values, weights.to(values.dtype), sums, input_precision=PRECISION)
    _store(sums, bias, out, tokens, rows, m, n, out_stride, BIAS)


@triton.jit
def _int4_kernel(
    x, packed, scales, minimums, bias, out, m, n, k, x_stride, out_stride, GROUP: tl.constexpr, BIAS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(1) * M + tl.arange(0, M)
    rows = tl.program_id(0) * N + tl.arange(0, N)
    HALF: tl.constexpr = GROUP // 2
    sums = tl.zeros([M, N], tl.float32)
    for start in range(0, k, K):
        places = start // 2 + tl.arange(0, K // 2)
        inside = places < k // 2
        columns = places // HALF * GROUP + places % HALF
        at = x + tokens.to(tl.int64)[:, None] * x_stride + columns[None, :]
        shown = (tokens < m)[:, None] & inside[None, :]
        low = tl.load(at, mask=shown, other=0.0)
        high = tl.load(at + HALF, mask=shown, other=0.0)
        there = (rows < n)[None, :] & inside[:, None]
        pairs = tl.load(packed + rows.to(tl.int64)[None, :] * (k // 2) + places[:, None], mask=there, other=0)
        at = rows.to(tl.int64)[None, :] * (k // GROUP) + places[:, None] // HALF
        scale = tl.load(scales + at, mask=there, other=0.0).to(tl.float32)
        minimum = tl.load(minimums + at, mask=there, other=0.0).to(tl.float32)
        first = ((pairs & 15).to(tl.float32) * scale + minimum).to(low.dtype)
        second = ((pairs >> 4).to(tl.float32) * scale + minimum).to(low.dtype)
        sums = tl.dot(low, first, sums, input_precision=PRECISION)
        sums = tl.dot(high, second, sums, input_precision=PRECISION)
    _store(sums, bias, out, tokens, rows, m, n, out_stride, BIAS)


@triton.jit
def _store(sums, bias, out, tokens, rows, m, n, out_stride, BIAS: tl.constexpr):
    if BIAS:
        sums += tl.load(bias + rows, mask=rows < n, other=0.0).to(tl.float32)[None, :]
    at = out + tokens.to(tl.int64)[:, None] * out_stride + rows[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=(tokens < m)[:, None] & (rows < n)[None, :])


def dense_row(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x [1, in] @ weight [out, in].T into out [1, out]."""
    n, k = weight.shape
    shape = row_shape("dense", n, k)
    _dense_row_kernel[(triton.cdiv(n, shape.n),)](
        x, weight, out if bias is None else bias, out, n, k, BIAS=bias is not None, N=shape.n, K=shape.k,
        num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip


def grouped(x: Tensor, weight: Int8Groups | GroupedInt4, bias: Tensor | None, out: Tensor) -> None:
    """x [tokens, in] with contiguous rows @ weight.T into out [tokens, out], whose rows are contiguous."""
    check_device(x, weight.scales, out)
    assert x.stride(1) == 1 and out.stride(1) == 1
    tokens, (n, k) = x.shape[0], weight.shape
    if isinstance(weight, Int8Groups):
        parts: tuple[Tensor, ...] = (weight.q, weight.scales, out if bias is None else bias, out)
    else:
        parts = (weight.packed, weight.scales, weight.minimums, out if bias is None else bias, out)
    options = {"GROUP": weight.group, "BIAS": bias is not None}
    if tokens == 1:
        shape = row_shape("int8" if isinstance(weight, Int8Groups) else "int4", n, k)
        row_kernel = _int8_row_kernel if isinstance(weight, Int8Groups) else _int4_row_kernel
        row_kernel[(triton.cdiv(n, shape.n),)](
            x, *parts, n, k, **options, N=shape.n, K=max(shape.k, weight.group), num_warps=shape.warps,
            num_stages=shape.stages,
        )  # fmt: skip
    elif tokens:
        shape = matmul_shape(tokens, n, k)
        kernel = _int8_kernel if isinstance(weight, Int8Groups) else _int4_kernel
        kernel[(triton.cdiv(n, shape.n), triton.cdiv(tokens, shape.m))](
            x, *parts, tokens, n, k, x.stride(0), out.stride(0), **options, M=shape.m, N=shape.n, K=shape.k,
            PRECISION="ieee" if x.dtype == torch.float32 else "tf32", num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
