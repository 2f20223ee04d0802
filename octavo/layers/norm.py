"""RMS norm as models hold it. Stateless; the weight is f32, as norms are computed."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.ops import Ops


class RMSNorm:
    def __init__(self, ops: Ops, weight: Tensor, eps: float) -> None:
        self._ops, self._weight, self._eps = ops, weight, eps

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → the same."""
        return self._ops.rms_norm(x, self._weight, self._eps)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """→ (norm(x + residual), x + residual); may overwrite both. No residual: x alone."""
        return self._ops.add_rms_norm(x, residual, self._weight, self._eps)
