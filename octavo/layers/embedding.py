"""The token embedding. With tied embeddings its table is also the weight of the output head."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.expression import Input
from octavo.kernels.layouts import Prepared
from octavo.kernels.ops import Ops


class Embedding:
    """`table`: prepared by `ops.prepare_table`, or the weight of the head. Its rows are multiplied with `scale`."""

    def __init__(self, ops: Ops, table: Prepared, scale: float = 1.0) -> None:
        self._ops, self._table = ops, table
        self._scale = None if scale == 1.0 else Input(0) * scale

    @property
    def nbytes(self) -> int:
        return self._table.nbytes

    def __call__(self, token_ids: Tensor) -> Tensor:
        """[tokens] int64 → [tokens, hidden]."""
        x = self._ops.embedding(token_ids, self._table)
        return x if self._scale is None else self._ops.elementwise(self._scale, x)
