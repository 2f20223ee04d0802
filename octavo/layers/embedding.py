"""The token embedding. With tied embeddings its table is also the weight of the output head."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.layouts import Prepared
from octavo.kernels.ops import Ops


class Embedding:
    """`table`: prepared by `ops.prepare_table`, or the weight of the head."""

    def __init__(self, ops: Ops, table: Prepared) -> None:
        self._ops, self._table = ops, table

    @property
    def nbytes(self) -> int:
        return self._table.nbytes

    def __call__(self, token_ids: Tensor) -> Tensor:
        """[tokens] int64 → [tokens, hidden]."""
        return self._ops.embedding(token_ids, self._table)
