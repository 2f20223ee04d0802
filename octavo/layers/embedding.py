"""The token embedding. With tied embeddings its table is also the weight of the output head."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.layouts import Dense, Layout
from octavo.kernels.ops import Ops


class Embedding:
    """A quantized table that is not shared with the head stays as the file has it: only the rows of a step are made
    dense."""

    def __init__(self, ops: Ops, table: Layout) -> None:
        self._ops = ops
        self._table = ops.prepare(table) if isinstance(table, Dense) else table

    @property
    def nbytes(self) -> int:
        return self._table.nbytes

    def __call__(self, token_ids: Tensor) -> Tensor:
        """[tokens] int64 → [tokens, hidden]."""
        return self._ops.embedding(token_ids, self._table)
