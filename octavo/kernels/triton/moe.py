"""A mixture of experts: routing, and the products of the chosen experts over ragged groups of tokens.

The choices [tokens, k] are ordered by expert on the device: `_count` counts each expert's, `_place` gives every choice
its place and every block of M places its expert. Nothing is read back by the host, so a launch can be captured in a
graph: the grid is the largest number of blocks there can be, and those without an expert leave at once. No atomics: an
expert's choices stay in the order of their tokens, and a result is the same in every launch.

A product then takes a block of choices, fetches their rows of x wherever they lie, multiplies by the expert's matrix
(any form that linear.py knows) and writes each result to its choice's own row. Bound by the memory of the experts in
use for few tokens, by the matrix units for many.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.layouts import Dense, Float8Groups, Int8Groups
from octavo.kernels.triton import activation, linear
from octavo.kernels.triton.launch import check_device, next_power_of_2
from octavo.kernels.triton.shapes import matmul_shape, precision
from octavo.kernels.triton.tiles import dense_sums, int4_sums, scaled_sums, store_tile

_CHOICES = 1024
"""Choices that one program looks at at once."""
_COLUMNS = 1024


@dataclass(frozen=True)
class StackedExperts:
    """The experts' matrices under one another."""

    stack: Dense | Int8Groups | Float8Groups | linear.GroupedInt4  # [experts * out, in]
    experts: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.experts, self.stack.shape[0] // self.experts, self.stack.shape[1]

    @property
    def nbytes(self) -> int:
        return self.stack.nbytes

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.stack.dequantize(dtype).view(self.shape)


@dataclass(frozen=True)
class Blocks:
    """Choices ordered by expert, and blocks of at most `size` of them of one expert each."""

    order: Tensor  # [choices] int32: the choice in each place
    expert: Tensor  # [blocks] int32; -1: none
    first: Tensor  # [blocks] int32: its first place
    end: Tensor  # [blocks] int32: the end of its expert's places
    size: int


@triton.jit
def _route_kernel(
    logits, weights, ids, stride, experts, K: tl.constexpr, PADDED_K: tl.constexpr, RENORMALIZE: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns, places = tl.arange(0, PADDED), tl.arange(0, PADDED_K)
    x = tl.load(logits + token * stride + columns, mask=columns < experts, other=float("-inf"))
    raised = tl.exp(x - tl.max(x, 0))
    shares = raised / tl.sum(raised, 0)
    # What is chosen from stays a number, so that ids are some expert's whatever the logits were.
    left = tl.where(columns < experts, tl.where(shares == shares, shares, 0.0), -2.0)
    kept, chosen = tl.zeros([PADDED_K], tl.float32), tl.zeros([PADDED_K], tl.int32)
    for i in tl.static_range(K):
        best = tl.argmax(left, 0)
        kept = tl.where(places == i, tl.sum(tl.where(columns == best, shares, 0.0), 0), kept)
        chosen = tl.where(places == i, best, chosen)
        left = tl.where(columns == best, -1.0, left)
    if RENORMALIZE:
        kept /= tl.sum(kept, 0)
    tl.store(weights + token * K + places, kept, mask=places < K)
    tl.store(ids + token * K + places, chosen, mask=places < K)


@triton.jit(do_not_specialize=["choices"])
def _count_kernel(ids, counts, choices, BLOCK: tl.constexpr):
    expert = tl.program_id(0)
    found = tl.zeros([BLOCK], tl.int32)
    for start in range(0, choices, BLOCK):
        at = start + tl.arange(0, BLOCK)
        found += (tl.load(ids + at, mask=at < choices, other=-1) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, 0))


@triton.jit(do_not_specialize=["choices", "blocks"])
def _place_kernel(
    ids, counts, order, block_expert, block_first, block_end, choices, experts, blocks, SIZE: tl.constexpr,
    PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One expert's choices and blocks; the last one's program marks the blocks that are left over."""
    expert = tl.program_id(0)
    others = tl.arange(0, PADDED)
    all_counts = tl.load(counts + others, mask=others < experts, other=0)
    before = others < expert
    begin = tl.sum(tl.where(before, all_counts, 0), 0)
    first_block = tl.sum(tl.where(before, (all_counts + SIZE - 1) // SIZE, 0), 0)
    count = tl.load(counts + expert)
    used = (count + SIZE - 1) // SIZE
    for start in range(0, used, BLOCK):
        block = start + tl.arange(0, BLOCK)
        tl.store(block_expert + first_block + block, expert, mask=block < used)
        tl.store(block_first + first_block + block, begin + block * SIZE, mask=block < used)
        tl.store(block_end + first_block + block, begin + count, mask=block < used)
    if expert == experts - 1:
        for start in range(first_block + used, blocks, BLOCK):
            block = start + tl.arange(0, BLOCK)
            tl.store(block_expert + block, -1, mask=block < blocks)
    place = begin
    for start in range(0, choices, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mine = (tl.load(ids + at, mask=at < choices, other=-1) == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(mine, 0) - 1, at, mask=mine > 0)
        place += tl.sum(mine, 0)


@triton.jit
def _block(order, block_expert, block_first, block_end, n, SIZE: tl.constexpr, N: tl.constexpr):
    """(expert, choices [SIZE], which are there, columns of the result [N] int64) of this program."""
    block = tl.program_id(1)
    expert = tl.load(block_expert + block).to(tl.int64)
    places = tl.load(block_first + block) + tl.arange(0, SIZE)
    shown = places < tl.load(block_end + block)
    choices = tl.load(order + places, mask=shown, other=0)
    return expert, choices, shown, tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)


@triton.jit
def _dense_kernel(
    x, w, out, order, block_expert, block_first, block_end, share, n, k, SIZE: tl.constexpr, GROUP: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    if tl.load(block_expert + tl.program_id(1)) < 0:
        return
    expert, choices, shown, columns = _block(order, block_expert, block_first, block_end, n, SIZE, N)
    at = x + (choices // share).to(tl.int64)[:, None] * k
    sums = dense_sums(at, shown, w + expert * n * k, columns, columns < n, k, SIZE, N, K, PRECISION)
    store_tile(sums, out, out + choices.to(tl.int64)[:, None] * n, shown, columns, columns < n, False)


@triton.jit
def _scaled_kernel(
    x, q, scales, out, order, block_expert, block_first, block_end, share, n, k, SIZE: tl.constexpr,
    GROUP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    if tl.load(block_expert + tl.program_id(1)) < 0:
        return
    expert, choices, shown, columns = _block(order, block_expert, block_first, block_end, n, SIZE, N)
    at = x + (choices // share).to(tl.int64)[:, None] * k
    rows = expert * n + columns
    sums = scaled_sums(at, shown, q, scales, rows, columns < n, k, 0, k, GROUP, SIZE, N, K, PRECISION)
    store_tile(sums, out, out + choices.to(tl.int64)[:, None] * n, shown, columns, columns < n, False)


@triton.jit
def _int4_kernel(
    x, packed, scales, minimums, out, order, block_expert, block_first, block_end, share, n, k, half, one,
    SIZE: tl.constexpr, GROUP: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    if tl.load(block_expert + tl.program_id(1)) < 0:
        return
    expert, choices, shown, columns = _block(order, block_expert, block_first, block_end, n, SIZE, N)
    at = x + (choices // share).to(tl.int64)[:, None] * k
    there = columns < n
    rows = expert * n + columns
    sums = int4_sums(at, shown, packed, scales, minimums, rows, there, k, half, one, 0, k, GROUP, SIZE, N, K, PRECISION)
    store_tile(sums, out, out + choices.to(tl.int64)[:, None] * n, shown, columns, there, False)


@triton.jit
def _join_kernel(of_choice, weights, out, n, CHOICES: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(CHOICES):
        at = of_choice + (token * CHOICES + i) * n + columns
        sums += tl.load(weights + token * CHOICES + i) * tl.load(at, mask=columns < n, other=0.0).to(tl.float32)
    tl.store(out + token * n + columns, sums.to(out.dtype.element_ty), mask=columns < n)


def route(logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """See Ops.route: logits [tokens, experts] f32 with contiguous rows."""
    check_device(logits)
    tokens, experts = logits.shape
    assert logits.stride(1) == 1 and 0 < k <= experts
    weights = torch.empty((tokens, k), dtype=torch.float32, device=logits.device)
    ids = torch.empty((tokens, k), dtype=torch.int32, device=logits.device)
    if tokens:
        _route_kernel[(tokens,)](
            logits, weights, ids, logits.stride(0), experts, K=k, PADDED_K=next_power_of_2(k),
            RENORMALIZE=renormalize, PADDED=next_power_of_2(experts), num_warps=1,
        )  # fmt: skip
    return weights, ids


def make_blocks(ids: Tensor, experts: int, size: int) -> Blocks:
    """ids [tokens, k] int32, each below `experts`."""
    choices, device = ids.numel(), ids.device

    def empty(n: int) -> Tensor:
        return torch.empty(n, dtype=torch.int32, device=device)

    # Each expert in use wastes at most size - 1 places of its last block.
    most = (choices + min(experts, choices) * (size - 1)) // size
    counts, order, found = empty(experts), empty(choices), (empty(most), empty(most), empty(most))
    block = min(next_power_of_2(choices), _CHOICES)
    _count_kernel[(experts,)](ids, counts, choices, BLOCK=block, num_warps=4)
    _place_kernel[(experts,)](
        ids, counts, order, *found, choices, experts, most, SIZE=size, PADDED=next_power_of_2(experts), BLOCK=block,
        num_warps=4,
    )  # fmt: skip
    return Blocks(order, *found, size)


def experts(x: Tensor, weights: Tensor, ids: Tensor, gate_up: StackedExperts, down: StackedExperts) -> Tensor:
    """See Ops.experts; x [tokens, hidden] contiguous → [tokens, hidden] in x's dtype."""
    check_device(x, weights, ids)
    tokens, k = ids.shape
    assert x.is_contiguous() and ids.is_contiguous() and weights.is_contiguous() and ids.dtype == torch.int32
    out = torch.empty((tokens, down.shape[1]), dtype=x.dtype, device=x.device)
    if not tokens:
        return out
    count = gate_up.experts
    int4 = isinstance(gate_up.stack, linear.GroupedInt4)
    size = matmul_shape(x.device, triton.cdiv(tokens * k, count), *gate_up.shape[1:], x.itemsize, int4).m
    blocks = make_blocks(ids, count, size)
    inner = activation.silu_mul(_product(x, blocks, k, gate_up, tokens * k))
    of_choice = _product(inner, blocks, 1, down, tokens * k)
    n = out.shape[1]
    _join_kernel[(tokens, triton.cdiv(n, _COLUMNS))](of_choice, weights, out, n, CHOICES=k, BLOCK=_COLUMNS)
    return out


def _product(x: Tensor, blocks: Blocks, share: int, weight: StackedExperts, choices: int) -> Tensor:
    """[choices, out]; choice i has row i // share of x."""
    stack, (_, n, k) = weight.stack, weight.shape
    out = torch.empty((choices, n), dtype=x.dtype, device=x.device)
    shape = matmul_shape(x.device, blocks.size, n, k, x.itemsize, isinstance(stack, linear.GroupedInt4))
    kernel, group = _dense_kernel, 0
    tensors: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    if isinstance(stack, Dense):
        tensors, sizes = (stack.data,), (k,)
    else:
        kernel = _int4_kernel if isinstance(stack, linear.GroupedInt4) else _scaled_kernel
        group, (tensors, sizes) = linear.group_of(stack), linear.arguments(stack)
    kernel[(triton.cdiv(n, shape.n), blocks.expert.shape[0])](
        x, *tensors, out, blocks.order, blocks.expert, blocks.first, blocks.end, share, n, *sizes, SIZE=blocks.size,
        GROUP=group, N=shape.n, K=shape.k, PRECISION=precision(x.dtype),
        **shape.options,
    )  # fmt: skip
    return out
