"""The permanent rows: what the worker knows of every running request. Written by worker/runner, read by worker/step.

Invariant: a row that is not admitted has num_tokens 0; block_tables[row, :num_blocks[row]] are its pages in order;
positions below num_computed have their K and V in them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.wire.plan import Admit, Extend

Ints = NDArray[np.int32]


class Batch:
    """Arrays over rows; a released row costs nothing and keeps its place."""

    def __init__(self, max_rows: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.token_ids: Ints = np.zeros((max_rows, max_model_len + 1), np.int32)
        self.block_tables: Ints = np.zeros((max_rows, -(-max_model_len // block_size) + 1), np.int32)
        self.num_tokens: Ints = np.zeros(max_rows, np.int32)
        self.num_prompt: Ints = np.zeros(max_rows, np.int32)
        self.num_computed: Ints = np.zeros(max_rows, np.int32)
        self.num_blocks: Ints = np.zeros(max_rows, np.int32)
        self.prompt_logprobs: Ints = np.full(max_rows, -1, np.int32)
        """Alternatives wanted per prompt token; -1: none asked."""

    def admit(self, admit: Admit) -> None:
        row, length, blocks = admit.row, len(admit.token_ids), len(admit.block_ids)
        assert self.num_tokens[row] == 0, f"row {row} is taken"
        assert 0 < length <= self.max_model_len, f"row {row}: {length} tokens"
        assert 0 <= admit.num_computed_tokens < length, f"row {row}: {admit.num_computed_tokens} of {length} computed"
        self.token_ids[row, :length] = admit.token_ids
        self.block_tables[row, :blocks] = admit.block_ids
        self.num_tokens[row] = length
        self.num_prompt[row] = admit.num_prompt_tokens
        self.num_computed[row] = admit.num_computed_tokens
        self.num_blocks[row] = blocks
        wanted = admit.params.prompt_logprobs
        self.prompt_logprobs[row] = -1 if wanted is None else wanted

    def extend(self, extend: Extend) -> None:
        row, held = extend.row, self.num_blocks[extend.row]
        assert self.num_tokens[row] > 0, f"row {row} is free"
        self.block_tables[row, held : held + len(extend.block_ids)] = extend.block_ids
        self.num_blocks[row] += len(extend.block_ids)

    def release(self, row: int) -> None:
        self.num_tokens[row] = 0
        self.num_blocks[row] = 0
        self.prompt_logprobs[row] = -1

    def append(self, rows: Ints, token_ids: list[int]) -> None:
        """One sampled token for each of `rows`."""
        self.token_ids[rows, self.num_tokens[rows]] = token_ids
        self.num_tokens[rows] += 1
