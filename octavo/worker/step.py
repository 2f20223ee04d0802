"""Gathers the Step of a plan from the permanent rows: array operations over all tokens at once, no loop over rows or
tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.kernels.recorded import Runs
from octavo.kernels.step import Step
from octavo.worker.batch import Batch


def _ragged(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Lengths → starts [n + 1], and for every element the index of its part and its place within it."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    part = np.repeat(np.arange(len(lengths)), lengths)
    return starts, part, np.arange(starts[-1]) - starts[part]


def gather(batch: Batch, runs: Runs) -> Step:
    """The definition of a step's inputs, which whoever gathers by other means is tested against. Assertions here are
    the engine's promises."""
    block_size = batch.block_size
    rows, lengths = np.array(runs.rows, np.int64), np.array(runs.counts, np.int64)
    samples = np.array(runs.samples, np.int64)
    computed = batch.num_computed[rows].astype(np.int64)
    contexts = computed + lengths
    num_pages = -(-contexts // block_size)
    assert (lengths > 0).all() and len(set(rows.tolist())) == len(rows), "a row runs once a step, at least one token"
    assert (contexts <= batch.num_tokens[rows]).all(), "a run goes beyond the tokens its row has"
    at_end = contexts == batch.num_tokens[rows]  # and still no sample for max_tokens=0
    assert at_end[samples > 0].all(), "a run samples only where it reaches its row's end"
    assert (samples <= lengths).all(), "a run samples behind its own tokens"
    assert (num_pages <= batch.num_blocks[rows]).all(), "a row has too few pages"

    starts, run_of, place = _ragged(lengths)
    positions = computed[run_of] + place
    row_of = rows[run_of]
    page_starts, page_run, page_place = _ragged(num_pages)
    _, sample_run, sample_place = _ragged(samples)

    def blocks(group: int) -> tuple[Tensor, Tensor]:
        """Slots and page_ids. In place of blocks that the window has left behind comes the first that it has not: what
        a kernel reads beside the window, and masks, is then the row's own."""
        tables, window = batch.block_tables[group], batch.windows[group]
        first = np.maximum(computed - window + 1, 0) // block_size if window else np.zeros_like(computed)
        slots = tables[row_of, positions // block_size].astype(np.int64) * block_size + positions % block_size
        page_ids = tables[rows[page_run], np.maximum(page_place, first[page_run])]
        return torch.from_numpy(slots), torch.from_numpy(page_ids)

    (slots, page_ids), *further = (blocks(group) for group in range(len(batch.windows)))
    step = Step(
        token_ids=torch.from_numpy(batch.token_ids[row_of, positions].astype(np.int64)),
        positions=torch.from_numpy(positions),
        slots=slots,
        query_start=torch.from_numpy(starts.astype(np.int32)),
        context_lens=torch.from_numpy(contexts.astype(np.int32)),
        page_start=torch.from_numpy(page_starts.astype(np.int32)),
        page_ids=page_ids,
        logits_index=torch.from_numpy(starts[1:][sample_run] - samples[sample_run] + sample_place),
        block_size=block_size,
        max_query_len=int(lengths.max()),
        max_context_len=int(contexts.max()),
        rows=torch.tensor(runs.rows, dtype=torch.int32),
    )
    others = [replace(step, slots=at, page_ids=ids, group=group) for group, (at, ids) in enumerate(further, 1)]
    return replace(step, others=tuple(others))
