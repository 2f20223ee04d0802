"""The operations contract: the typed list of everything a model or the sampler may compute.

Layers call only these; `kernels/reference` says in plain PyTorch what each means; every backend passes the same
tests. A backend is chosen once at load (kernels/registry.py) and handed to the layers as one `Ops` object.
Adding an operation: one method here, one reference, one list of shapes in tests/ops.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from octavo.kernels.layouts import Layout
from octavo.kernels.step import Step


class Ops(Protocol):
    """One backend. Activations x are [tokens, features] in the engine's dtype, contiguous, on one device."""

    name: str

    def prepare(self, weight: Layout) -> Layout:
        """The layout in which this backend wants a matrix that `linear` will multiply; called once per matrix at
        load (the reference: dense in the engine's dtype)."""
        ...

    def embedding(self, token_ids: Tensor, table: Layout) -> Tensor:
        """[tokens] int64, [vocab, hidden] → [tokens, hidden]."""
        ...

    def linear(self, x: Tensor, weight: Layout, bias: Tensor | None = None) -> Tensor:
        """[tokens, in], [out, in] → [tokens, out]; f32 accumulation."""
        ...

    def logits(self, x: Tensor, weight: Layout) -> Tensor:
        """[samples, hidden], [vocab, hidden] → [samples, vocab] f32, never rounded to less: bf16 has steps of 1/8 where
        logits lie, which would choose among the best by chance."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x²) + eps) * weight over the last axis, in f32, rounded to x's dtype."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """residual' = x + residual; → (rms_norm(residual') in x's dtype, residual'). May overwrite both inputs.
        The residual is f32 in every dtype: what all layers add to is not rounded at each."""
        ...

    def rope_cache(self, q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, kv: Tensor, step: Step) -> Tensor:
        """Rotate q and k by their positions and write k, v into the pages.

        q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim] (may be views of one fused projection);
        cos_sin [max_positions, rotary_dim] f32: cosines then sines, halves convention (NeoX), rotary_dim <= head_dim;
        kv [2, blocks, block_size, kv_heads, head_dim], one layer's pages. → rotated q, contiguous.
        """
        ...

    def attention(
        self, q: Tensor, kv: Tensor, step: Step, scale: float, window: int | None = None, soft_cap: float | None = None
    ) -> Tensor:
        """Causal grouped-query attention of each row's new tokens over its pages.

        q [tokens, heads, head_dim] → [tokens, heads * head_dim]. Query i of a row with context c and n new tokens
        sees positions 0 .. c - n + i, and of those the last `window` when given; scores capped by
        soft_cap * tanh(s / soft_cap).
        """
        ...

    def silu_mul(self, x: Tensor) -> Tensor:
        """[tokens, 2 * n] → [tokens, n]: silu(first half) * second half."""
        ...

    def gather_rows(self, x: Tensor, index: Tensor) -> Tensor:
        """[tokens, n], [m] int64 → [m, n]."""
        ...

    def penalize(
        self,
        logits: Tensor,
        output_counts: Tensor,
        prompt_seen: Tensor,
        presence: Tensor,
        frequency: Tensor,
        repetition: Tensor,
    ) -> Tensor:
        """In place on logits [samples, vocab] f32: repetition (divide positive, multiply negative logits of tokens in
        prompt or output), then frequency * count and presence * (count > 0) subtracted.
        output_counts [samples, vocab] int, prompt_seen [samples, vocab] bool, the rest [samples] f32."""
        ...

    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seeds: Tensor,
        indices: Tensor,
    ) -> Tensor:
        """[samples, vocab] f32 → [samples] int64 token ids.

        Per row: temperature 0 is argmax (lowest id on ties); otherwise scale by 1/temperature, keep top_k (<= 0:
        all), then top_p (1: all) of what is left, then min_p (0: all), and draw with noise that is a pure
        function of (seed int64, index int64 of the output token, token id)."""
        ...

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
        """log-softmax of [samples, vocab] f32 → chosen [samples], top values and ids [samples, num_top]."""
        ...
