"""The step that follows from a device's own rows, and what it leaves in them, in plain PyTorch. Called by ReferenceOps
and CpuOps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.kernels.rows import DeviceRows
from octavo.kernels.step import Step

OUTPUTS = 2
"""Column of DeviceRows.sampling_ints that counts output tokens."""


def decode_step(rows: Tensor, state: DeviceRows, block_size: int, max_context_len: int) -> Step:
    """See Ops.decode_step: rows [n] int32. Each row has a page for its next position."""
    n, (_, _, pages) = rows.shape[0], state.block_tables.shape
    computed, places = state.num_computed[rows], torch.arange(n + 1, dtype=torch.int32, device=rows.device)
    at = computed // block_size
    slots = [table[rows, at].long() * block_size + computed % block_size for table in state.block_tables]
    page_start = torch.zeros_like(places)
    page_start[:n] = rows * pages
    step = Step(
        token_ids=state.last_token[rows],
        positions=computed.long(),
        slots=slots[0],
        query_start=places,
        context_lens=computed + 1,
        page_start=page_start,
        page_ids=state.block_tables[0].view(-1),
        logits_index=places[:n].long(),
        block_size=block_size,
        max_query_len=1,
        max_context_len=max_context_len,
        rows=rows,
        tight=False,
    )
    others = zip(slots[1:], state.block_tables[1:], strict=True)
    further = [replace(step, slots=at, page_ids=table.view(-1), group=i) for i, (at, table) in enumerate(others, 1)]
    return replace(step, others=tuple(further))


def decode_done(rows: Tensor, token_ids: Tensor, state: DeviceRows) -> None:
    """See Ops.decode_done: rows [n] int32, token_ids [n] int64."""
    real = rows < state.padding
    rows = rows[real]
    state.last_token[rows] = token_ids[real].clamp_min(0)
    state.num_computed[rows] += 1
    state.sampling_ints[rows, OUTPUTS] += 1
