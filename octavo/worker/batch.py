"""The permanent rows: what the worker knows of every running request. Written by worker/runner and by a recorded step,
read by worker/step.

Invariant: a row that is not admitted has num_tokens 0; block_tables[group, row, :num_blocks[row]] are its blocks in a
paged cache group, in order; positions below num_computed have their K and V in them, save those that a window has left
behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.kernels.recorded import PermanentRows, Runs
from octavo.wire.plan import Admit, Extend

Ints = NDArray[np.int32]

UNKNOWN = -1
"""A token that was sampled and that only the device knows."""


class Batch:
    """Arrays over rows; a released row costs nothing and keeps its place."""

    def __init__(
        self, max_rows: int, max_model_len: int, block_size: int, windows: Sequence[int | None] = (None,)
    ) -> None:
        """`windows`: of each paged cache group."""
        self.block_size = block_size
        self.windows = tuple(windows)
        self.max_model_len = max_model_len
        self.token_ids: Ints = np.zeros((max_rows, max_model_len + 1), np.int32)
        self.block_tables: Ints = np.zeros((len(windows), max_rows, -(-max_model_len // block_size) + 1), np.int32)
        self.num_tokens: Ints = np.zeros(max_rows, np.int32)
        self.num_prompt: Ints = np.zeros(max_rows, np.int32)
        self.num_computed: Ints = np.zeros(max_rows, np.int32)
        self.num_blocks: Ints = np.zeros(max_rows, np.int32)
        self.prompt_logprobs: Ints = np.full(max_rows, -1, np.int32)
        """Alternatives wanted per prompt token; -1: none asked."""
        self.scored: set[int] = set()
        """Rows that asked and whose prompt is not computed yet."""

    def admit(self, admit: Admit) -> None:
        row, length = admit.row, len(admit.token_ids)
        assert self.num_tokens[row] == 0, f"row {row} is taken"
        assert 0 < length <= self.max_model_len, f"row {row}: {length} tokens"
        assert 0 <= admit.num_computed_tokens < length, f"row {row}: {admit.num_computed_tokens} of {length} computed"
        self.token_ids[row, :length] = admit.token_ids
        self.num_blocks[row] = 0
        self._append(row, admit.block_ids)
        self.num_tokens[row] = length
        self.num_prompt[row] = admit.num_prompt_tokens
        self.num_computed[row] = admit.num_computed_tokens
        wanted = admit.params.prompt_logprobs
        self.prompt_logprobs[row] = -1 if wanted is None else wanted
        if wanted is not None:
            self.scored.add(row)

    def extend(self, extend: Extend) -> None:
        assert self.num_tokens[extend.row] > 0, f"row {extend.row} is free"
        self._append(extend.row, extend.block_ids)

    def _append(self, row: int, block_ids: Sequence[Sequence[int]]) -> None:
        held, count = self.num_blocks[row], len(block_ids[0])
        for tables, ids in zip(self.block_tables, block_ids, strict=True):
            tables[row, held : held + count] = ids
        self.num_blocks[row] += count

    def release(self, row: int) -> None:
        self.num_tokens[row] = 0
        self.num_blocks[row] = 0
        self.prompt_logprobs[row] = -1
        self.scored.discard(row)

    def advance(self, runs: Runs, token_ids: Sequence[int] | int = UNKNOWN) -> None:
        """The runs are computed, and one of `token_ids` was sampled for each that samples; UNKNOWN while they are on
        their way. (A recorded step does this by itself.)"""
        self.num_computed[runs.rows] += np.array(runs.counts, np.int32)
        sampled = np.array(runs.rows, np.int64)[np.array(runs.samples, np.bool_)]
        self.token_ids[sampled, self.num_tokens[sampled]] = token_ids
        self.num_tokens[sampled] += 1

    def draft(self, row: int, token_ids: Sequence[int]) -> None:
        """These count as the row's tokens, behind its last one, until `settle`."""
        first = self.num_tokens[row]
        end = first + len(token_ids)
        assert first > 0 and end <= self.max_model_len, f"row {row}: {len(token_ids)} proposed behind {first} tokens"
        self.token_ids[row, first:end] = token_ids
        self.num_tokens[row] = end

    def settle(self, runs: Runs, tokens: Sequence[Sequence[int]]) -> None:
        """As `advance`, of a step with drafts: `tokens` stand behind the last certain token of each run that
        samples."""
        settled = iter(tokens)
        for row, count, samples in zip(runs.rows, runs.counts, runs.samples, strict=True):
            self.num_computed[row] += count
            if samples:
                found, first = next(settled), self.num_tokens[row] - (samples - 1)
                end = first + len(found)
                self.token_ids[row, first:end] = found
                self.num_tokens[row] = end
                self.num_computed[row] = end - 1

    def permanent(self, sampling_floats: Tensor, sampling_ints: Tensor) -> PermanentRows:
        """These arrays and the sampler's, as a recorded step is given them."""
        return PermanentRows(
            token_ids=torch.from_numpy(self.token_ids),
            block_tables=torch.from_numpy(self.block_tables),
            num_tokens=torch.from_numpy(self.num_tokens),
            num_computed=torch.from_numpy(self.num_computed),
            num_blocks=torch.from_numpy(self.num_blocks),
            sampling_floats=sampling_floats,
            sampling_ints=sampling_ints,
            windows=self.windows,
        )
