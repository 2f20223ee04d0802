"""Matrix products as models hold them: a prepared weight, an optional bias, and the operations that multiply.

Made by model files, called by blocks. Invariant: the weight has passed `ops.prepare`; nobody else sees its layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.layouts import Layout
from octavo.kernels.ops import Ops


class Linear:
    """y = x @ W.T + b, x [tokens, in] → [tokens, out]. Several parts are one product in place of several over the same
    x: their results lie side by side, in whatever layouts the file has them."""

    def __init__(self, ops: Ops, parts: Sequence[Layout], biases: Sequence[Tensor] = ()) -> None:
        self._ops = ops
        self._weight = ops.prepare(parts)
        self._bias = torch.cat(list(biases)) if biases else None

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.linear(x, self._weight, self._bias)


class Head:
    """The projection to the vocabulary: f32 logits, x [samples, hidden] → [samples, vocab]."""

    def __init__(self, ops: Ops, weight: Layout) -> None:
        self._ops = ops
        self.weight = ops.prepare([weight])

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.logits(x, self.weight)
