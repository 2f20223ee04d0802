"""The step that follows from the device's own rows, and what it leaves in them: one launch each, of a few bytes a row.
Nothing is read back and no size hangs on a tensor's contents, so a graph can hold them."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.reference.rows import OUTPUTS
from octavo.kernels.rows import DeviceRows
from octavo.kernels.step import Step
from octavo.kernels.triton.launch import check_device

_BLOCK = 128


@triton.jit(do_not_specialize=["n", "width"])
def _step_kernel(
    rows, last_token, num_computed, block_tables, longs, ints, n, num_rows, pages, width, block_size,
    GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """longs [3 + groups, width]: token ids, positions, places, slots in each cache group; ints [3, width]: places,
    contexts, starts of pages."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    row = tl.load(rows + at, mask=inside, other=0).to(tl.int64)
    computed = tl.load(num_computed + row, mask=inside, other=0)
    tl.store(longs + at, tl.load(last_token + row, mask=inside, other=0), mask=inside)
    tl.store(longs + width + at, computed.to(tl.int64), mask=inside)
    tl.store(longs + 2 * width + at, at.to(tl.int64), mask=inside)
    for group in range(GROUPS):  # [groups, rows, pages]
        table = block_tables + (group * num_rows + row) * pages
        page = tl.load(table + computed // block_size, mask=inside, other=0).to(tl.int64)
        tl.store(longs + (3 + group) * width + at, page * block_size + computed % block_size, mask=inside)
    tl.store(ints + at, at, mask=at <= n)
    tl.store(ints + width + at, computed + 1, mask=inside)
    tl.store(ints + 2 * width + at, (row * pages).to(tl.int32), mask=at <= n)


@triton.jit(do_not_specialize=["n"])
def _done_kernel(
    rows, token_ids, last_token, num_computed, sampling_ints, n, padding, columns, OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + at, mask=at < n, other=0).to(tl.int64)
    real = (at < n) & (row < padding)
    token = tl.load(token_ids + at, mask=real, other=0)
    tl.store(last_token + row, tl.maximum(token, 0), mask=real)
    tl.store(num_computed + row, tl.load(num_computed + row, mask=real, other=0) + 1, mask=real)
    outputs = sampling_ints + row * columns + OUTPUTS
    tl.store(outputs, tl.load(outputs, mask=real, other=0) + 1, mask=real)


def decode_step(rows: Tensor, state: DeviceRows, block_size: int, max_context_len: int) -> Step:
    """See Ops.decode_step: rows [n] int32."""
    _check(rows, state)
    n, (groups, num_rows, pages) = rows.shape[0], state.block_tables.shape
    width = (n // 4 + 1) * 4  # n + 1 entries; each array begins at a multiple of 16 bytes, as others' loads like it
    longs = torch.empty((3 + groups, width), dtype=torch.int64, device=rows.device)
    ints = torch.empty((3, width), dtype=torch.int32, device=rows.device)
    _step_kernel[(triton.cdiv(n + 1, _BLOCK),)](
        rows, state.last_token, state.num_computed, state.block_tables, longs, ints, n, num_rows, pages, width,
        block_size, GROUPS=groups, BLOCK=_BLOCK, num_warps=1,
    )  # fmt: skip
    token_ids, positions, places, *slots = longs[:, :n].unbind()
    query_start, context_lens, page_start = ints[:, : n + 1].unbind()
    tables = state.block_tables.view(groups, -1)
    step = Step(
        token_ids, positions, slots[0], query_start, context_lens[:n], page_start, tables[0], places,
        block_size, max_query_len=1, max_context_len=max_context_len, rows=rows,
        tight=False,
    )  # fmt: skip
    return replace(step, others=tuple(
        replace(step, slots=slots[group], page_ids=tables[group], group=group) for group in range(1, groups)
    ))  # fmt: skip


def decode_done(rows: Tensor, token_ids: Tensor, state: DeviceRows) -> None:
    """See Ops.decode_done: rows [n] int32, token_ids [n] int64."""
    _check(rows, state)
    check_device(rows, token_ids)
    assert token_ids.is_contiguous() and token_ids.dtype == torch.int64 and token_ids.shape == rows.shape
    if n := rows.shape[0]:
        _done_kernel[(triton.cdiv(n, _BLOCK),)](
            rows, token_ids, state.last_token, state.num_computed, state.sampling_ints, n, state.padding,
            state.sampling_ints.shape[1], OUTPUTS=OUTPUTS, BLOCK=_BLOCK, num_warps=1,
        )  # fmt: skip


def _check(rows: Tensor, state: DeviceRows) -> None:
    tensors = (rows, state.last_token, state.num_computed, state.block_tables, state.sampling_ints)
    check_device(*tensors)
    assert all(tensor.is_contiguous() for tensor in tensors)
    assert [tensor.dtype.itemsize for tensor in tensors] == [4, 8, 4, 4, 8]
