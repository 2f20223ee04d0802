"""Self-attention of one layer: fused QKV, rotary embedding (after a norm of each head, where a model has one), paged
attention, output projection. Stateless: keys and values live in the pages that the worker owns."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.expression import Input, sigmoid
from octavo.kernels.ops import HeadNorms, Ops
from octavo.kernels.step import LayerCache, PagedCache, Step
from octavo.layers.linear import Linear
from octavo.modelfiles.facts import AttentionFacts

GATED = Input(0) * sigmoid(Input(1))


class Attention:
    def __init__(
        self,
        ops: Ops,
        shape: AttentionFacts,
        qkv: Linear,
        out: Linear,
        cos_sin: Tensor,
        norms: HeadNorms | None = None,
    ) -> None:
        self._ops, self._shape = ops, shape
        self._qkv, self._out = qkv, out
        self._cos_sin, self._norms = cos_sin, norms

    @property
    def nbytes(self) -> int:
        of_heads = self._norms.q.nbytes + self._norms.k.nbytes if self._norms else 0
        return self._qkv.nbytes + self._out.nbytes + of_heads

    def __call__(self, x: Tensor, kv: LayerCache, step: Step) -> Tensor:
        """x [tokens, hidden] → [tokens, hidden]."""
        return self._out(self._attended(self._qkv(x), kv, step))

    def _attended(self, qkv: Tensor, kv: LayerCache, step: Step) -> Tensor:
        assert isinstance(kv, PagedCache)
        shape, step = self._shape, step.of(kv.group)
        heads, kv_heads = shape.num_heads, shape.num_kv_heads
        qkv = qkv.view(qkv.shape[0], heads + 2 * kv_heads, shape.head_dim)
        q, k, v = qkv[:, :heads], qkv[:, heads:-kv_heads], qkv[:, -kv_heads:]
        q = self._ops.rope_cache(q, k, v, self._cos_sin, kv.blocks, step, self._norms)
        return self._ops.attention(q, kv.blocks, step, shape.scale, shape.window)


class GatedAttention(Attention):
    """What attention finds is multiplied with a sigmoid of gates, whose rows in `qkv` come after those of q, k, v."""

    def __call__(self, x: Tensor, kv: LayerCache, step: Step) -> Tensor:
        """x [tokens, hidden] → [tokens, hidden]."""
        shape = self._shape
        width = shape.num_heads * shape.head_dim
        widths = [width + 2 * shape.num_kv_heads * shape.head_dim, width]
        qkv, gates = torch.split(self._qkv(x), widths, dim=1)
        return self._out(self._ops.elementwise(GATED, self._attended(qkv, kv, step), gates))
