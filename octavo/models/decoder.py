"""The common decoder-only stack: embedding, blocks of attention and MLP with norms before each, final norm, head.

Built by model files, called by worker/runner. Stateless: `model(step, kv)` depends on its arguments and weights alone.
A model whose blocks differ in structure brings its own block class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from octavo.kernels.step import LayerCache, Step
from octavo.layers.attention import Attention
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Head
from octavo.layers.mlp import MLP
from octavo.layers.norm import RMSNorm


class Model(Protocol):
    """What the worker runs."""

    @property
    def nbytes(self) -> int:
        """Bytes of weights held in memory."""
        ...

    def __call__(self, step: Step, kv: Sequence[LayerCache]) -> Tensor:
        """kv: what each layer keeps, of the kind that the facts say; it is written.
        → hidden states after the final norm, [tokens, hidden]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[samples, hidden] → [samples, vocab] f32."""
        ...


class Block(Protocol):
    @property
    def nbytes(self) -> int: ...

    def __call__(self, x: Tensor, residual: Tensor | None, kv: LayerCache, step: Step) -> tuple[Tensor, Tensor]:
        """x [tokens, hidden], residual the same in f32, or None at the first block → (this block's last contribution,
        the sum before it)."""
        ...


class Mixer(Protocol):
    """Where tokens see one another: attention, or a layer with a state."""

    @property
    def nbytes(self) -> int: ...

    def __call__(self, x: Tensor, kv: LayerCache, step: Step) -> Tensor:
        """[tokens, hidden] → the same; kv: what this layer keeps."""
        ...


class PreNormBlock:
    """x → x + attention(norm(x)) → x + mlp(norm(x)); the sum is carried as `residual` until the next norm adds it."""

    def __init__(self, attention_norm: RMSNorm, attention: Mixer, mlp_norm: RMSNorm, mlp: MLP) -> None:
        self._attention_norm, self._attention = attention_norm, attention
        self._mlp_norm, self._mlp = mlp_norm, mlp

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self._attention_norm, self._attention, self._mlp_norm, self._mlp))

    def __call__(self, x: Tensor, residual: Tensor | None, kv: LayerCache, step: Step) -> tuple[Tensor, Tensor]:
        x, residual = self._attention_norm.add(x, residual)
        x, residual = self._mlp_norm.add(self._attention(x, kv, step), residual)
        return self._mlp(x), residual


class SandwichBlock:
    """x → x + norm(attention(norm(x))) → x + norm(mlp(norm(x)))."""

    def __init__(
        self,
        attention_norm: RMSNorm,
        attention: Attention,
        attention_out_norm: RMSNorm,
        mlp_norm: RMSNorm,
        mlp: MLP,
        mlp_out_norm: RMSNorm,
    ) -> None:
        self._attention_norm, self._attention, self._attention_out_norm = attention_norm, attention, attention_out_norm
        self._mlp_norm, self._mlp, self._mlp_out_norm = mlp_norm, mlp, mlp_out_norm

    @property
    def nbytes(self) -> int:
        norms = (self._attention_norm, self._attention_out_norm, self._mlp_norm, self._mlp_out_norm)
        return sum(part.nbytes for part in (*norms, self._attention, self._mlp))

    def __call__(self, x: Tensor, residual: Tensor | None, kv: LayerCache, step: Step) -> tuple[Tensor, Tensor]:
        x, residual = self._attention_norm.add(x, residual)
        x = self._attention_out_norm(self._attention(x, kv, step))
        x, residual = self._mlp_norm.add(x, residual)
        return self._mlp_out_norm(self._mlp(x)), residual


class Decoder:
    """Implements Model. `tied`: the head's weight is the embedding's table (counted once)."""

    def __init__(self, embedding: Embedding, blocks: Sequence[Block], norm: RMSNorm, head: Head, tied: bool) -> None:
        self._embedding, self._blocks, self._norm, self._head = embedding, list(blocks), norm, head
        self._tied = tied

    @property
    def nbytes(self) -> int:
        shared = 0 if self._tied else self._embedding.nbytes
        return shared + sum(block.nbytes for block in self._blocks) + self._norm.nbytes + self._head.nbytes

    def __call__(self, step: Step, kv: Sequence[LayerCache]) -> Tensor:
        x, residual = self._embedding(step.token_ids), None
        for block, cache in zip(self._blocks, kv, strict=True):
            x, residual = block(x, residual, cache, step)
        return self._norm.add(x, residual)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)
