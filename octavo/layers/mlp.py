"""The gated feed-forward layer: down(silu(gate(x)) * up(x)), gate and up as one product. Stateless."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.ops import Ops
from octavo.layers.linear import Linear


class GatedMLP:
    def __init__(self, ops: Ops, gate_up: Linear, down: Linear) -> None:
        self._ops, self._gate_up, self._down = ops, gate_up, down

    @property
    def nbytes(self) -> int:
        return self._gate_up.nbytes + self._down.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        return self._down(self._ops.silu_mul(self._gate_up(x)))
