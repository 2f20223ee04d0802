"""The gated feed-forward layer: down(activation(gate(x)) * up(x)), gate and up as one product. Stateless."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from octavo.kernels.expression import Input, gelu_tanh
from octavo.kernels.ops import Ops
from octavo.layers.linear import Linear

GATES = {"gelu_tanh": gelu_tanh(Input(0)) * Input(1)}
"""By activation, but for silu, which has an operation of its own."""


class MLP(Protocol):
    """What stands behind attention in a block."""

    @property
    def nbytes(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        ...


class GatedMLP:
    def __init__(self, ops: Ops, gate_up: Linear, down: Linear, activation: str = "silu") -> None:
        self._ops, self._gate_up, self._down = ops, gate_up, down
        self._gate = None if activation == "silu" else GATES[activation]

    @property
    def nbytes(self) -> int:
        return self._gate_up.nbytes + self._down.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        x = self._gate_up(x)
        if self._gate is None:
            return self._down(self._ops.silu_mul(x))
        inner = x.shape[1] // 2
        return self._down(self._ops.elementwise(self._gate, x[:, :inner], x[:, inner:]))
