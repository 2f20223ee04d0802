"""Paged causal attention in plain PyTorch, on the device of its tensors. Called by ReferenceOps, and as a GPU's last
choice (kernels/attention.py).

`AttentionPlan` is what all layers of a step share: which pages each row gathers, padded, and the masks. It is made
once per step. Rows with one new token are batched in groups of similar length, so that padding at most doubles the
work; rows with more are computed one by one in chunks of queries that see only the pages they may. K and V are never
repeated for grouped queries.

Invariant: a row's result does not depend on what else is in the step. Padded keys are masked with -inf and so add exact
zeros, provided that the keys are whole vectors; queries are padded to a multiple of 4, because below 4 the matrix
products round in another order. (So in bf16, to the bit. In f32 the library sums many keys in parts whose size depends
on their number: equal to about 1e-7.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.step import Step

QUERY_CHUNK = 128
"""Queries of one row computed at once: bounds the mask, and skips keys that all of them are too early for."""

QUERY_MULTIPLE = 4
KEY_MULTIPLE = 32

MIN_GROUP_PAGES = 16
"""Rows shorter than this many pages share one group."""


@dataclass(frozen=True)
class DecodeGroup:
    """Rows with one new token each, padded to the longest of them."""

    tokens: Tensor | None  # [rows] int64 into the step's tokens; None: all of them, in order
    pages: Tensor  # [rows * max_pages] int64; the padding repeats a row's own last page
    context_lens: Tensor  # [rows] int64

    @property
    def num_rows(self) -> int:
        return self.context_lens.shape[0]


@dataclass(frozen=True)
class QueryChunk:
    """Some consecutive new tokens of one row: step tokens start..end, whose last one is at position context - 1."""

    start: int
    end: int
    context: int

    @property
    def num_keys(self) -> int:
        """Keys that are looked at, the padding included."""
        return _padded(self.context, KEY_MULTIPLE)


@dataclass(frozen=True)
class PrefillRow:
    pages: Tensor  # [pages] int64, padded like those of a group
    chunks: list[QueryChunk]


@dataclass
class AttentionPlan:
    """Of one step. `masks` fills as layers ask (full and windowed layers differ)."""

    groups: list[DecodeGroup]
    prefills: list[PrefillRow]
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    def decode_mask(self, index: int, block_size: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """[rows, 1, 1, padded context]: 0 where the row's token sees the key, else -inf."""
        key = (0, index, window)
        if key not in self.masks:
            group = self.groups[index]
            keys = torch.arange(group.pages.shape[0] // group.num_rows * block_size, device=group.pages.device)
            context = group.context_lens.unsqueeze(1)
            hidden = keys >= context
            if window is not None:
                hidden |= keys < context - window
            self.masks[key] = _mask(hidden, dtype)[:, None, None]
        return self.masks[key]

    def chunk_mask(self, chunk: QueryChunk, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[queries, keys, both padded] of one chunk, likewise; the padding sees everything."""
        key = (1, chunk.start, window)
        if key not in self.masks:
            keys = torch.arange(chunk.num_keys, device=device)
            first, queries = chunk.context - (chunk.end - chunk.start), chunk.end - chunk.start
            last = torch.arange(first, first + queries + -queries % QUERY_MULTIPLE, device=device).unsqueeze(1)
            hidden = keys > last
            if window is not None:
                hidden |= keys <= last - window
            self.masks[key] = _mask(hidden, dtype)
        return self.masks[key]


def _mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


def make_plan(step: Step) -> AttentionPlan:
    """Groups the rows of a step. Host work in proportion to rows, none to tokens."""
    starts = step.query_start.long()
    query_lens = starts[1:] - starts[:-1]
    # Where a row's pages end follows from its context: page_start need not tell (Step.tight).
    first = step.page_start[:-1].long()
    spans = torch.stack((first, first + (step.context_lens.long() + step.block_size - 1) // step.block_size), dim=-1)
    singles = (query_lens == 1).nonzero().squeeze(1)
    groups = _decode_groups(step, singles, starts, spans)
    prefills = []
    for row in (query_lens > 1).nonzero().squeeze(1).tolist():
        start, end = int(starts[row]), int(starts[row + 1])
        pages = _padded_pages(step, spans[row])
        context = int(step.context_lens[row])
        chunks = [
            QueryChunk(at, min(at + QUERY_CHUNK, end), context - (end - min(at + QUERY_CHUNK, end)))
            for at in range(start, end, QUERY_CHUNK)
        ]
        prefills.append(PrefillRow(pages, chunks))
    return AttentionPlan(groups, prefills)


def _padded(count: int, multiple: int) -> int:
    return count + -count % multiple


def _padded_pages(step: Step, spans: Tensor) -> Tensor:
    """spans [..., 2]: first and last + 1 of some rows' pages in the step's page_ids → those pages, as many for each row
    as for the longest and whole KEY_MULTIPLEs, int64, flat."""
    first, count = spans[..., :1], spans[..., 1:] - spans[..., :1]
    longest = _padded(int(count.max()) * step.block_size, KEY_MULTIPLE) // step.block_size
    place = torch.minimum(torch.arange(longest, device=count.device), count - 1) + first
    return step.page_ids[place.flatten()].long()


def _decode_groups(step: Step, rows: Tensor, starts: Tensor, spans: Tensor) -> list[DecodeGroup]:
    """Rows whose page count has the same next power of two go together."""
    num_pages = spans[rows, 1] - spans[rows, 0]
    buckets = num_pages.clamp_min(MIN_GROUP_PAGES).sub(1).double().log2().floor()
    groups = []
    for bucket in sorted(set(buckets.tolist())):
        chosen = (buckets == bucket).nonzero().squeeze(1)
        picked = rows[chosen]
        everything = picked.shape[0] == step.num_tokens
        groups.append(
            DecodeGroup(
                tokens=None if everything else starts[picked],
                pages=_padded_pages(step, spans[picked]),
                context_lens=step.context_lens[picked].long(),
            )
        )
    return groups


def attention(
    q: Tensor, kv: Tensor, plan: AttentionPlan, scale: float, window: int | None, soft_cap: float | None
) -> Tensor:
    """q [tokens, heads, head_dim], kv [2, blocks, block_size, kv_heads, head_dim] → [tokens, heads * head_dim]."""
    out = torch.empty_like(q) if plan.prefills or len(plan.groups) != 1 else None
    kv_heads, head_dim = kv.shape[3], kv.shape[4]
    for i, group in enumerate(plan.groups):
        k, v = (
            x.view(group.num_rows, -1, kv_heads, head_dim).transpose(1, 2) for x in _gather(kv, group.pages, q.dtype)
        )
        mask = plan.decode_mask(i, kv.shape[2], window, q.dtype)
        queries = q if group.tokens is None else q.index_select(0, group.tokens)
        # The heads that share a KV head are the "positions" of one attention problem over it.
        found = _attend(queries.reshape(group.num_rows, kv_heads, -1, head_dim), k, v, mask, scale, soft_cap)
        found = found.reshape(queries.shape)
        if out is None or group.tokens is None:
            out = found
        else:
            out.index_copy_(0, group.tokens, found)
    for row in plan.prefills:
        assert out is not None
        k, v = (x.view(-1, kv_heads, head_dim).transpose(0, 1).unsqueeze(1) for x in _gather(kv, row.pages, q.dtype))
        for chunk in row.chunks:
            length = chunk.end - chunk.start
            queries = q[chunk.start : chunk.end].view(length, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
            seen = (kv_heads, queries.shape[1], chunk.num_keys, head_dim)
            keys, values = k[:, :, : chunk.num_keys].expand(seen), v[:, :, : chunk.num_keys].expand(seen)
            mask = plan.chunk_mask(chunk, window, q.dtype, q.device)
            found = _attend(queries, keys, values, mask, scale, soft_cap)  # [kv_heads, group, queries, head_dim]
            out[chunk.start : chunk.end] = found.permute(2, 0, 1, 3).reshape(-1, q.shape[1], head_dim)
    assert out is not None
    return out.reshape(q.shape[0], -1)


def _gather(kv: Tensor, pages: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if kv.dtype.itemsize == 1:  # fp8: not every device can gather it as such
        k, v = (x.view(torch.uint8).index_select(0, pages).view(kv.dtype).to(dtype) for x in kv)
        return k, v
    return kv[0].index_select(0, pages), kv[1].index_select(0, pages)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, soft_cap: float | None) -> Tensor:
    """q [a, b, n, d], k and v [a, b, context, d], mask broadcast to [a, b, padded n, context] → [a, b, n, d]."""
    num_queries = q.shape[2]
    if num_queries % QUERY_MULTIPLE:
        q = F.pad(q, (0, 0, 0, -num_queries % QUERY_MULTIPLE))
    if soft_cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[:, :, :num_queries]
    scores = torch.matmul(q.float(), k.float().transpose(-1, -2)).mul_(scale)
    scores = scores.div_(soft_cap).tanh_().mul_(soft_cap).add_(mask.float())
    return torch.matmul(scores.softmax(-1), v.float()).to(q.dtype)[:, :, :num_queries]


class PlannedAttention:
    """See Ops.attention. Keeps, for each cache group, the plan of the step it was last given."""

    def __init__(self) -> None:
        self._planned: dict[int, tuple[Step, AttentionPlan]] = {}

    def __call__(
        self, q: Tensor, kv: Tensor, step: Step, scale: float, window: int | None = None, soft_cap: float | None = None
    ) -> Tensor:
        planned = self._planned.get(step.group)
        if planned is None or planned[0] is not step:
            planned = self._planned[step.group] = step, make_plan(step)
        return attention(q, kv, planned[1], scale, window, soft_cap)
