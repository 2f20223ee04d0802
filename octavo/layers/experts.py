"""A mixture of experts: each token's largest shares of the router choose gated MLPs, whose results are added up; beside
them may stand an expert that every token takes, by a gate of its own. Stateless."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octavo.kernels.expression import Input, sigmoid
from octavo.kernels.layouts import Layout, PreparedExperts
from octavo.kernels.ops import Ops
from octavo.layers.linear import Linear
from octavo.layers.mlp import GatedMLP

_ADDED = Input(0) + sigmoid(Input(1)) * Input(2)


class SharedExpert:
    """sigmoid(gate(x)) * mlp(x)."""

    def __init__(self, mlp: GatedMLP, gate: Linear) -> None:
        self.mlp, self.gate = mlp, gate

    @property
    def nbytes(self) -> int:
        return self.mlp.nbytes + self.gate.nbytes


class Experts:
    """`gate_up` and `down`: prepared by `ops.prepare_experts`. Each token takes `chosen` of them."""

    def __init__(
        self,
        ops: Ops,
        router: Layout,
        gate_up: Sequence[Sequence[Layout]],
        down: Sequence[Sequence[Layout]],
        chosen: int,
        renormalize: bool,
        shared: SharedExpert | None = None,
    ) -> None:
        self._ops, self._router = ops, ops.prepare([router])
        self._gate_up: PreparedExperts = ops.prepare_experts(gate_up)
        self._down: PreparedExperts = ops.prepare_experts(down)
        self._chosen, self._renormalize, self._shared = chosen, renormalize, shared

    @property
    def nbytes(self) -> int:
        shared = 0 if self._shared is None else self._shared.nbytes
        return self._router.nbytes + self._gate_up.nbytes + self._down.nbytes + shared

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, hidden] → [tokens, hidden]."""
        ops = self._ops
        weights, ids = ops.route(ops.logits(x, self._router), self._chosen, self._renormalize)
        out = ops.experts(x, weights, ids, self._gate_up, self._down)
        if self._shared is None:
            return out
        return ops.elementwise(_ADDED, out, self._shared.gate(x), self._shared.mlp(x))
