"""Matrix products as models hold them: a prepared weight, an optional bias, and the operations that multiply.

Made by model files, called by blocks. Invariant: the weight has passed `ops.prepare`; nobody else sees its layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.layouts import Layout, same_form
from octavo.kernels.ops import Ops


class Linear:
    """y = x @ W.T + b, x [tokens, in] → [tokens, out]."""

    def __init__(self, ops: Ops, weight: Layout, bias: Tensor | None = None) -> None:
        self._ops = ops
        self.weight = ops.prepare(weight)
        self._bias = bias

    @classmethod
    def fused(cls, ops: Ops, weights: Sequence[Layout], biases: Sequence[Tensor] | None = None) -> Linear:
        """One product in place of several over the same x; the results lie side by side. Formats may mix the layouts
        of, say, q and v: those are fused in the form the backend brings them to."""
        if not same_form(weights):
            weights = [ops.prepare(weight) for weight in weights]
        bias = torch.cat(list(biases)) if biases else None
        return cls(ops, weights[0].fuse(list(weights[1:])), bias)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self._bias is None else self._bias.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.linear(x, self.weight, self._bias)


class Head:
    """The projection to the vocabulary: f32 logits, x [samples, hidden] → [samples, vocab]."""

    def __init__(self, ops: Ops, weight: Layout) -> None:
        self._ops = ops
        self.weight = ops.prepare(weight)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.logits(x, self.weight)
