"""Embeddings: the hidden states of a row's prompt, after the final norm, made into one vector. Used by worker/runner.

Owns, from admit to release, what has come of rows that want one; a prompt may come in any number of chunks.
Invariant: of a row that is admitted anew (after preemption) everything comes again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.wire.plan import Admit


class Pooling:
    """`rows`: those that want an embedding and have none yet."""

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self._sums: dict[int, Tensor | None] = {}
        """Of rows that want the mean: what is computed so far; in f64, so that chunks change nothing that is seen."""

    def admit(self, admit: Admit) -> None:
        if admit.pooling is not None:
            assert admit.pooling == "last" or admit.num_computed_tokens == 0, "a mean needs every token"
            self.rows.add(admit.row)
            if admit.pooling == "mean":
                self._sums[admit.row] = None

    def release(self, row: int) -> None:
        self.rows.discard(row)
        self._sums.pop(row, None)

    def add(self, row: int, hidden: Tensor, num_prompt: int, ends: bool) -> bytes | None:
        """hidden [tokens, hidden] of the row's next tokens; → the embedding, [hidden] f32, where they end its prompt of
        `num_prompt` tokens."""
        if row in self._sums:
            before, found = self._sums[row], hidden.sum(0, dtype=torch.float64)
            self._sums[row] = found = found if before is None else before + found
            pooled = found / num_prompt
        else:
            pooled = hidden[-1]
        if not ends:
            return None
        self.release(row)
        return pooled.float().cpu().numpy().astype(np.dtype("<f4"), copy=False).tobytes()
