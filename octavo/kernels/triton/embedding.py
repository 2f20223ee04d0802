"""Row look-ups: gathered rows of a table, dense or of quantized groups. Bound by memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.layouts import Dense, Float8Groups, Int4Groups, Int8Groups
from octavo.kernels.triton.launch import check_device
from octavo.kernels.triton.linear import readable
from octavo.kernels.triton.tiles import of_bytes

_BLOCK = 1024


@triton.jit
def _gather_kernel(table, index, out, stride, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n
    values = tl.load(table + tl.load(index + row) * stride + columns, mask=inside)
    tl.store(out + row * n + columns, values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _scaled_kernel(q, scales, index, out, n, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n
    source = tl.load(index + row)
    values = of_bytes(tl.load(q + source * n + columns, mask=inside, other=0.0)).to(tl.float32)
    scale = tl.load(scales + source * (n // GROUP) + columns // GROUP, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + columns, (values * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _int4_kernel(packed, scales, minimums, index, out, n, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n
    source = tl.load(index + row)
    pair = tl.load(packed + source * (n // 2) + columns // 2, mask=inside, other=0).to(tl.int32)
    values = ((pair >> (4 * (columns % 2))) & 15).to(tl.float32)
    group = source * (n // GROUP) + columns // GROUP
    scale = tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
    minimum = tl.load(minimums + group, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + columns, (values * scale + minimum).to(out.dtype.element_ty), mask=inside)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x [rows, n] with contiguous rows, index [m] int64 → [m, n]."""
    return _gathered(x, index, x.dtype)


def embedding(token_ids: Tensor, table: Dense | Int8Groups | Float8Groups | Int4Groups, dtype: torch.dtype) -> Tensor:
    """token_ids [tokens] int64, table [vocab, hidden] → [tokens, hidden] in `dtype`."""
    if isinstance(table, Dense):
        return _gathered(table.data, token_ids, dtype)
    n = table.shape[1]
    out = torch.empty((token_ids.shape[0], n), dtype=dtype, device=token_ids.device)
    grid = (token_ids.shape[0], triton.cdiv(n, _BLOCK))
    if not token_ids.shape[0]:
        return out
    check_device(table.scales, token_ids)
    if not isinstance(table, Int4Groups):
        _scaled_kernel[grid](readable(table.q), table.scales, token_ids, out, n, GROUP=table.group, BLOCK=_BLOCK)
    else:
        _int4_kernel[grid](
            table.packed, table.scales, table.minimums, token_ids, out, n, GROUP=table.group, BLOCK=_BLOCK
        )
    return out


def _gathered(table: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    check_device(table, index)
    assert table.stride(1) == 1
    out = torch.empty((index.shape[0], table.shape[1]), dtype=dtype, device=table.device)
    if out.numel():
        grid = (index.shape[0], triton.cdiv(table.shape[1], _BLOCK))
        _gather_kernel[grid](table, index, out, table.stride(0), table.shape[1], BLOCK=_BLOCK)
    return out
