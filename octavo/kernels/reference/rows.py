"""The step that follows from a device's own rows, and what it leaves in them, in plain PyTorch. Called by ReferenceOps
and CpuOps."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.rows import DeviceRows
from octavo.kernels.step import Step

OUTPUTS = 2
"""Column of DeviceRows.sampling_ints that counts output tokens."""


def decode_step(rows: Tensor, state: DeviceRows, block_size: int, max_context_len: int) -> Step:
    """See Ops.decode_step: rows [n] int32. Each row has a page for its next position."""
    n, (_, pages) = rows.shape[0], state.block_tables.shape
    computed, places = state.num_computed[rows], torch.arange(n + 1, dtype=torch.int32, device=rows.device)
    page = state.block_tables[rows, computed // block_size].long()
    page_start = torch.zeros_like(places)
    page_start[:n] = rows * pages
    return Step(
        token_ids=state.last_token[rows],
        positions=computed.long(),
        slots=page * block_size + computed % block_size,
        query_start=places,
        context_lens=computed + 1,
        page_start=page_start,
        page_ids=state.block_tables.view(-1),
        logits_index=places[:n].long(),
        block_size=block_size,
        max_query_len=1,
        max_context_len=max_context_len,
        rows=rows,
        tight=False,
    )


def decode_done(rows: Tensor, token_ids: Tensor, state: DeviceRows) -> None:
    """See Ops.decode_done: rows [n] int32, token_ids [n] int64."""
    real = rows < state.padding
    rows = rows[real]
    state.last_token[rows] = token_ids[real].clamp_min(0)
    state.num_computed[rows] += 1
    state.sampling_ints[rows, OUTPUTS] += 1
