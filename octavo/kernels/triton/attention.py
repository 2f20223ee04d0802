"""Paged causal attention with grouped queries: one kernel for rows with one new token, one for rows with more.

Both read K and V through the step's page table (CSR) and compute softmax online (Milakov and Gimelshein 2018,
arXiv:1805.02867; Dao 2023, arXiv:2307.08691). The query heads that share a KV head are rows of one tile, so K and V are
read once for all of them. In decode a row's context is split over programs (Flash-Decoding, Dao et al. 2023), whose
parts a second kernel joins: bound by memory, 4 * context * head_dim bytes a KV head in bf16. In prefill a program takes
BLOCK_M / group new tokens against the keys they may see: bound by the matrix units.

Grids depend on counts that the host knows (tokens, rows, `max_context_len`), never on a tensor's contents, so a launch
can be captured in a graph. A captured one is for the longest context there may be: into how many parts a row's context
is split follows from that context on the device, and programs beyond leave at once. So a row's result does not depend
on how long the other rows are, nor on what was captured.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.step import Step
from octavo.kernels.triton.launch import check_device, next_power_of_2, processors
from octavo.kernels.triton.shapes import (
    LEAST_KEYS,
    LONG_KEYS,
    MOST_SPLITS,
    decode_shape,
    decode_splits,
    precision,
    prefill_shape,
)


@triton.jit
def _scores(q, k, scale, soft_cap, SOFT_CAP: tl.constexpr, PRECISION: tl.constexpr):
    """q [M, D], k [N, D] → scores in units of log2."""
    found = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if SOFT_CAP:
        turned = 2.0 / (1.0 + tl.exp2(-2.0 * 1.4426950408889634 * found / soft_cap)) - 1.0  # tanh
        found = soft_cap * turned
    return found * 1.4426950408889634


@triton.jit
def _load_keys(pages, page_ids, first_page, keys, limit, head, features, KV_HEADS: tl.constexpr,
               BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, TO: tl.constexpr):  # fmt: skip
    """[N, D] of one KV head at positions `keys`, zeros from `limit` on."""
    inside = keys < limit
    page = tl.load(page_ids + first_page + keys // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    slot = page * BLOCK_SIZE + keys % BLOCK_SIZE
    at = pages + ((slot * KV_HEADS + head) * DIM)[:, None] + features[None, :]
    return tl.load(at, mask=inside[:, None] & (features < DIM)[None, :], other=0.0).to(TO)


@triton.jit
def _online(scores, value, peak, total, sums, PRECISION: tl.constexpr):
    """One more block of keys: the running maximum, the sum of weights and the weighted sum of values."""
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    # A row that has seen no key yet has peak -inf: nothing of it may become not-a-number.
    safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores - safe[:, None])
    keep = tl.exp2(peak - safe)
    total = total * keep + tl.sum(weights, 1)
    sums = tl.dot(weights.to(value.dtype), value, sums * keep[:, None], input_precision=PRECISION)
    return new_peak, total, sums


@triton.jit
def _parts(
    context, window, few, splits, WINDOW: tl.constexpr, N: tl.constexpr, LEAST: tl.constexpr, LONG: tl.constexpr
):
    """(first key, keys of a part, number of parts) of one row's context: `few` parts, each of LEAST keys or the only
    one; up to `splits` where each has LONG keys."""
    begin = context * 0
    if WINDOW:
        begin = tl.maximum(context - window, 0) // N * N
    span = context - begin
    wanted = tl.maximum(tl.minimum(tl.maximum(span // LEAST, 1), few), tl.minimum(span // LONG, splits))
    each = tl.maximum(tl.cdiv(tl.cdiv(span, wanted), N) * N, N)
    return begin, each, tl.maximum(tl.cdiv(span, each), 1)


@triton.jit(do_not_specialize=["few", "splits"])
def _decode_kernel(
    q, k_pages, v_pages, out, partial, stats, query_start, context_lens, page_start, page_ids, scale, soft_cap, window,
    few, splits, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, LEAST: tl.constexpr, LONG: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token = tl.load(query_start + row).to(tl.int64)
    context = tl.load(context_lens + row)
    begin, each, parts = _parts(context, window, few, splits, WINDOW, N, LEAST, LONG)
    if (split >= parts) | (tl.load(query_start + row + 1) - token != 1):
        return
    GROUP: tl.constexpr = HEADS // KV_HEADS
    first_page = tl.load(page_start + row)
    start = begin + split * each
    end = tl.minimum(start + each, context)
    members = tl.arange(0, M)
    features = tl.arange(0, WIDTH)
    shown = (members < GROUP)[:, None] & (features < DIM)[None, :]
    heads = head * GROUP + members
    TO: tl.constexpr = q.dtype.element_ty
    queries = tl.load(q + (token * HEADS + heads)[:, None] * DIM + features[None, :], mask=shown, other=0.0)
    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    sums = tl.zeros([M, WIDTH], tl.float32)
    for at in range(start, end, N):
        keys = at + tl.arange(0, N)
        k = _load_keys(k_pages, page_ids, first_page, keys, end, head, features, KV_HEADS, BLOCK_SIZE, DIM, TO)
        scores = _scores(queries, k, scale, soft_cap, SOFT_CAP, PRECISION)
        seen = keys < end
        if WINDOW:
            seen = seen & (keys >= context - window)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        v = _load_keys(v_pages, page_ids, first_page, keys, end, head, features, KV_HEADS, BLOCK_SIZE, DIM, TO)
        peak, total, sums = _online(scores, v, peak, total, sums, PRECISION)
    if parts == 1:  # a context of 0, which is nobody's, gives zeros
        to = out + (token * HEADS + heads)[:, None] * DIM + features[None, :]
        tl.store(to, (sums / tl.maximum(total, 1e-30)[:, None]).to(out.dtype.element_ty), mask=shown)
    else:
        place = (row.to(tl.int64) * HEADS + heads) * splits + split
        tl.store(partial + place[:, None] * DIM + features[None, :], sums, mask=shown)
        tl.store(stats + place * 2, peak, mask=members < GROUP)
        tl.store(stats + place * 2 + 1, total, mask=members < GROUP)


@triton.jit(do_not_specialize=["few", "splits"])
def _join_kernel(
    partial, stats, out, query_start, context_lens, window, few, splits, HEADS: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, WINDOW: tl.constexpr, LEAST: tl.constexpr, LONG: tl.constexpr, N: tl.constexpr,
    MOST: tl.constexpr,
):  # fmt: skip
    """MOST: of `splits`."""
    row, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(query_start + row).to(tl.int64)
    _, _, parts = _parts(tl.load(context_lens + row), window, few, splits, WINDOW, N, LEAST, LONG)
    if (parts == 1) | (tl.load(query_start + row + 1) - token != 1):
        return
    part = tl.arange(0, MOST)
    features = tl.arange(0, WIDTH)
    base = (row.to(tl.int64) * HEADS + head) * splits
    inside = part < parts
    peaks = tl.load(stats + (base + part) * 2, mask=inside, other=float("-inf"))
    totals = tl.load(stats + (base + part) * 2 + 1, mask=inside, other=0.0)
    weights = tl.exp2(peaks - tl.max(peaks, 0))
    at = partial + (base + part)[:, None] * DIM + features[None, :]
    sums = tl.load(at, mask=inside[:, None] & (features < DIM)[None, :], other=0.0)
    value = tl.sum(sums * weights[:, None], 0) / tl.sum(totals * weights, 0)
    tl.store(out + (token * HEADS + head) * DIM + features, value.to(out.dtype.element_ty), mask=features < DIM)


@triton.jit
def _row_of(tile, query_start, rows, TOKENS: tl.constexpr):
    """(row, tile of that row): row r has the tiles from query_start[r] // TOKENS + r on, some more than it needs."""
    below = 0
    for first in range(0, rows, 256):
        row = first + tl.arange(0, 256)
        start = tl.load(query_start + row, mask=row < rows, other=0) // TOKENS + row
        below += tl.sum(((start <= tile) & (row < rows)).to(tl.int32), 0)
    row = below - 1
    return row, tile - (tl.load(query_start + row) // TOKENS + row)


@triton.jit(do_not_specialize=["rows"])
def _prefill_kernel(
    q, k_pages, v_pages, out, query_start, context_lens, page_start, page_ids, scale, soft_cap, window, rows,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    GROUP: tl.constexpr = HEADS // KV_HEADS
    TOKENS: tl.constexpr = M // GROUP
    head = tl.program_id(1)
    # The last tokens have the most keys: they go first, so that no long program is left alone at the end.
    row, tile = _row_of(tl.num_programs(0) - 1 - tl.program_id(0), query_start, rows, TOKENS)
    first_token = tl.load(query_start + row).to(tl.int64)
    queries_here = tl.load(query_start + row + 1) - first_token
    if (queries_here < 2) | (tile * TOKENS >= queries_here):
        return
    context = tl.load(context_lens + row)
    first_page = tl.load(page_start + row)
    places = tl.arange(0, M)
    local = tile * TOKENS + places // GROUP
    features = tl.arange(0, WIDTH)
    mine = (places < TOKENS * GROUP) & (local < queries_here)
    shown = mine[:, None] & (features < DIM)[None, :]
    at = ((first_token + local) * HEADS + head * GROUP + places % GROUP)[:, None] * DIM + features[None, :]
    TO: tl.constexpr = q.dtype.element_ty
    queries = tl.load(q + at, mask=shown, other=0.0)
    positions = context - queries_here + local
    first_position = (context - queries_here + tile * TOKENS).to(tl.int32)
    limit = tl.minimum(first_position + TOKENS, context).to(tl.int32)
    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    sums = tl.zeros([M, WIDTH], tl.float32)
    # Keys before the first token of the tile are seen by all, unless a window ends among them.
    masked = 0 if WINDOW else (first_position + 1) // N * N
    for start in range(0, masked, N):
        keys = start + tl.arange(0, N)
        k = _load_keys(k_pages, page_ids, first_page, keys, limit, head, features, KV_HEADS, BLOCK_SIZE, DIM, TO)
        scores = _scores(queries, k, scale, soft_cap, SOFT_CAP, PRECISION)
        v = _load_keys(v_pages, page_ids, first_page, keys, limit, head, features, KV_HEADS, BLOCK_SIZE, DIM, TO)
        peak, total, sums = _online(scores, v, peak, total, sums, PRECISION)
    if WINDOW:
        masked = tl.maximum(first_position - window + 1, 0) // N * N
    for start in range(masked, limit, N):
        keys = start + tl.arange(0, N)
        k = _load_keys(k_pages, page_ids, first_page, keys, limit, head, features, KV_HEADS, BLOCK_SIZE, DIM, TO)
        scores = _scores(queries, k, scale, soft_cap, SOFT_CAP, PRECISION)
        seen = keys[None, :] <= positions[:, None]
        if WINDOW:
            seen = seen & (keys[None, :] > positions[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        v = _load_keys(v_pages, page_ids, first_page, keys, limit, head, features, KV_HEADS, BLOCK_SIZE, DIM, TO)
        peak, total, sums = _online(scores, v, peak, total, sums, PRECISION)
    tl.store(out + at, (sums / tl.maximum(total, 1e-30)[:, None]).to(out.dtype.element_ty), mask=shown)


def attention(
    q: Tensor, kv: Tensor, step: Step, scale: float, window: int | None = None, soft_cap: float | None = None
) -> Tensor:
    """See Ops.attention: q [tokens, heads, head_dim], contiguous; kv [2, blocks, block_size, kv_heads, head_dim], of
    q's type or a smaller one → [tokens, heads * head_dim]."""
    check_device(q, kv, step.page_ids)
    assert q.is_contiguous() and kv.is_contiguous() and kv.shape[2] == step.block_size
    out = torch.empty_like(q)
    constants = {
        "HEADS": q.shape[1], "KV_HEADS": kv.shape[3], "DIM": q.shape[2], "WIDTH": max(next_power_of_2(q.shape[2]), 16),
        "BLOCK_SIZE": kv.shape[2], "WINDOW": window is not None, "SOFT_CAP": soft_cap is not None,
        "PRECISION": precision(q.dtype),
    }  # fmt: skip
    numbers = (scale, soft_cap or 0.0, window or 0)
    if step.max_query_len > 1:
        _prefill(q, kv, out, step, numbers, constants)
    if q.shape[0] < step.num_rows * step.max_query_len or step.max_query_len == 1:
        _decode(q, kv, out, step, numbers, constants)
    return out.view(q.shape[0], -1)


def _prefill(
    q: Tensor, kv: Tensor, out: Tensor, step: Step, numbers: tuple[float, float, int], constants: dict[str, Any]
) -> None:
    """The rows with more than one new token."""
    kv_heads, group = kv.shape[3], q.shape[1] // kv.shape[3]
    shape = prefill_shape(q.device, q.shape[2], group, q.itemsize)
    tiles = q.shape[0] // (shape.m // group) + step.num_rows
    _prefill_kernel[(tiles, kv_heads)](
        q, kv[0], kv[1], out, step.query_start, step.context_lens, step.page_start, step.page_ids, *numbers,
        step.num_rows, **constants, M=shape.m, N=shape.n, **shape.options,
    )  # fmt: skip


def _decode(
    q: Tensor, kv: Tensor, out: Tensor, step: Step, numbers: tuple[float, float, int], constants: dict[str, Any]
) -> None:
    """The rows with one new token."""
    rows, heads, kv_heads, dim = step.num_rows, q.shape[1], kv.shape[3], q.shape[2]
    shape = decode_shape(q.device, dim, heads // kv_heads, q.itemsize)
    few, splits = decode_splits(rows, kv_heads, step.max_context_len, processors(q.device))
    partial = stats = out
    if splits > 1:
        partial = torch.empty((rows, heads, splits, dim), dtype=torch.float32, device=q.device)
        stats = torch.empty((rows, heads, splits, 2), dtype=torch.float32, device=q.device)
    _decode_kernel[(rows, kv_heads, splits)](
        q, kv[0], kv[1], out, partial, stats, step.query_start, step.context_lens, step.page_start, step.page_ids,
        *numbers, few, splits, **constants, LEAST=LEAST_KEYS, LONG=LONG_KEYS, M=shape.m, N=shape.n, **shape.options,
    )  # fmt: skip
    if splits > 1:
        _join_kernel[(rows, heads)](
            partial, stats, out, step.query_start, step.context_lens, numbers[2], few, splits, HEADS=heads, DIM=dim,
            WIDTH=constants["WIDTH"], WINDOW=constants["WINDOW"], LEAST=LEAST_KEYS, LONG=LONG_KEYS, N=shape.n,
            MOST=MOST_SPLITS, num_warps=4,
        )  # fmt: skip
