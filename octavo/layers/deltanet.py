"""Gated delta net of one layer (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464): one projection to q, k, v, a gate
z and what decay and step size are made from; a short convolution; the delta rule; a norm of each head, gated; output
projection. Stateless: what the layer keeps of a row lies in its cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.expression import Input, sigmoid, silu, softplus
from octavo.kernels.ops import Ops
from octavo.kernels.step import LayerCache, RecurrentCache, Step
from octavo.layers.linear import Linear
from octavo.modelfiles.facts import DeltaFacts

DECAY = Input(1) * softplus(Input(0) + Input(2))
BETA = sigmoid(Input(0))
GATED = Input(0) * silu(Input(1))
NORM_EPS = 1e-6
"""Of q and k: x / sqrt(sum(x²) + eps)."""


@dataclass(frozen=True)
class DeltaWeights:
    """Small ones, f32."""

    conv: Tensor  # [taps, channels], the last tap for the token itself
    decay: Tensor  # [v_heads], below 0: -exp(A_log)
    dt_bias: Tensor  # [v_heads]
    norm: Tensor  # [v_dim]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.conv, self.decay, self.dt_bias, self.norm))


class GatedDeltaNet:
    """`project`: rows of q, k, v, z, b and a, in this order."""

    def __init__(
        self, ops: Ops, shape: DeltaFacts, project: Linear, weights: DeltaWeights, out: Linear, eps: float
    ) -> None:
        self._ops, self._shape = ops, shape
        self._project, self._weights, self._out, self._eps = project, weights, out, eps
        # To divide by the length is to divide by the root mean square and by sqrt(k_dim).
        self._unit = torch.full((shape.k_dim,), shape.k_dim**-0.5, dtype=torch.float32, device=ops.device)

    @property
    def nbytes(self) -> int:
        return self._project.nbytes + self._weights.nbytes + self._out.nbytes

    def __call__(self, x: Tensor, kv: LayerCache, step: Step) -> Tensor:
        """x [tokens, hidden] → [tokens, hidden]."""
        assert isinstance(kv, RecurrentCache)
        ops, shape, weights = self._ops, self._shape, self._weights
        columns, state = kv.states
        projected = self._project(x)
        qkv, z, b, a = torch.split(projected, [shape.channels, shape.values, shape.v_heads, shape.v_heads], dim=1)
        qkv = ops.short_conv(qkv, weights.conv, columns, step)
        qk, v = torch.split(qkv, [2 * shape.keys, shape.values], dim=1)
        qk = qk.view(qk.shape[0], 2 * shape.k_heads, shape.k_dim)
        qk = ops.rms_norm(qk, self._unit, NORM_EPS / shape.k_dim)
        v = v.view(v.shape[0], shape.v_heads, shape.v_dim)
        q, k = torch.split(qk, shape.k_heads, dim=1)
        g = ops.elementwise(DECAY, a, weights.decay, weights.dt_bias, dtype=torch.float32)
        beta = ops.elementwise(BETA, b, dtype=torch.float32)
        found = ops.delta_rule(q, k, v, g, beta, state, step)
        found = ops.rms_norm(found, weights.norm, self._eps)
        return self._out(ops.elementwise(GATED, found.flatten(1), z))
