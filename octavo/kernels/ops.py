"""The operations contract: the typed list of everything a model or the sampler may compute.

Layers call only these; `kernels/reference` says in plain PyTorch what each means; every backend passes the same
tests. A backend is chosen once at load (kernels/registry.py) and handed to the layers as one `Ops` object.
Adding an operation: one method here, one reference, one list of shapes in tests/ops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.expression import Expression
from octavo.kernels.layouts import Layout, Prepared, PreparedExperts
from octavo.kernels.recorded import PermanentRows, StepModel, Steps
from octavo.kernels.rows import DeviceRows
from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows
from octavo.kernels.step import LayerCache, Step


@dataclass(frozen=True)
class HeadNorms:
    """RMS norms over the features of each head of q and of k, before they are rotated."""

    q: Tensor  # [head_dim] f32
    k: Tensor  # [head_dim] f32
    eps: float


Compute = Callable[..., Sequence[Tensor]]
"""(step, *inputs) → the results; without a step where the operation takes none."""


@dataclass(frozen=True)
class Result:
    """[rows, *shape] of a type of four bytes."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


class Ops(Protocol):
    """One backend. Activations x are [tokens, features] in `activations`, contiguous, on one device."""

    name: str

    activations: torch.dtype
    """Type of x, biases and results: the engine's dtype in the reference, f32 in native kernels whatever the dtype."""

    device: torch.device
    """Where all tensors are."""

    notes: Sequence[str]
    """What a user may want to know of the kernels in use: instruction set, threads."""

    def prepare(self, parts: Sequence[Layout]) -> Prepared:
        """One matrix that `linear` will multiply, its parts under one another along out_features, in the form this
        backend wants; called once per matrix at load (the reference: dense in the engine's dtype)."""
        ...

    def prepare_table(self, table: Layout) -> Prepared:
        """The same for a matrix of which only `embedding` reads some rows."""
        ...

    def prepare_experts(self, experts: Sequence[Sequence[Layout]]) -> PreparedExperts:
        """One matrix per expert of a mixture, each of parts as in `prepare`, all of one shape; what `experts` takes."""
        ...

    def kv_page(self, block_size: int, kv_heads: int, head_dim: int) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of one layer's K in one page; V's are the same. A layer's pages are [2, blocks, *shape]; what
        lies where inside a page is the backend's own affair."""
        ...

    def record(
        self, model: StepModel, kv: Sequence[LayerCache], rows: PermanentRows, max_tokens: int, block_size: int
    ) -> Steps | None:
        """The model's step over these caches and rows, of at most `max_tokens` tokens, to be replayed by one call;
        None: this backend runs steps one operation at a time."""
        ...

    def host(
        self,
        name: str,
        compute: Compute,
        inputs: Sequence[Tensor],
        results: Sequence[Result],
        step: Step | None = None,
    ) -> Sequence[Tensor]:
        """Work that is no operation here, in PyTorch: compute(*inputs), or compute(step, *inputs) with a step.
        Of `inputs` those of the step are [rows, ...], others are the same in every step; what is computed has the
        shapes of `results` behind the rows. A step that is recorded stops for it, which `notes` then say once."""
        ...

    def embedding(self, token_ids: Tensor, table: Prepared) -> Tensor:
        """[tokens] int64, [vocab, hidden] → [tokens, hidden]."""
        ...

    def linear(self, x: Tensor, weight: Prepared, bias: Tensor | None = None) -> Tensor:
        """[tokens, in], [out, in] → [tokens, out]; f32 accumulation."""
        ...

    def logits(self, x: Tensor, weight: Prepared) -> Tensor:
        """[samples, hidden], [vocab, hidden] → [samples, vocab] f32, never rounded to less: bf16 has steps of 1/8 where
        logits lie, which would choose among the best by chance."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x²) + eps) * weight over the last axis, in f32, rounded to x's dtype. x [tokens, n], or
        [tokens, heads, n], which may be part of something wider."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """residual' = x + residual (None: x alone) → (rms_norm(residual') in x's dtype, residual'). May overwrite both.
        The residual is f32 in every dtype: what all layers add to is not rounded at each."""
        ...

    def rope_cache(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos_sin: Tensor,
        kv: Tensor,
        step: Step,
        norms: HeadNorms | None = None,
    ) -> Tensor:
        """Rotate q and k by their positions, each head normalized first where there are norms (nothing is rounded
        between the two), and write k, v into the pages.

        q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim] (may be views of one fused projection);
        cos_sin [max_positions, rotary_dim] f32: cosines then sines, halves convention (NeoX), rotary_dim <= head_dim;
        kv: one layer's pages (see kv_page). → rotated q, contiguous.
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

    def short_conv(self, x: Tensor, weight: Tensor, state: Tensor, step: Step) -> Tensor:
        """Causal depthwise convolution of each row's new tokens, then SiLU: out[t] = silu(sum over j of
        weight[j] * x[t - (k - 1) + j]).

        x [tokens, channels] → the same; weight [k, channels] f32, the last for the token itself; state
        [slots, k - 1, channels] f32: what came before the step, oldest first, in the slot of the row (step.rows);
        updated in place. A run from position 0 on begins with zeros, whatever its slot holds. Summed in f32.
        """
        ...

    def delta_rule(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, step: Step) -> Tensor:
        """The gated delta rule over each row's new tokens, one after the other (Yang et al., "Gated Delta Networks"):

            S = exp(g) * S;  S = S + k outer (beta * (v - S' k));  out = S' q / sqrt(dk)

        q, k [tokens, k_heads, dk], normalized by the caller; v [tokens, v_heads, dv]; g (log of the decay, at most 0)
        and beta [tokens, v_heads]; state [slots, v_heads, dk, dv] f32: S in the slot of each row (step.rows), updated
        in place → [tokens, v_heads, dv] in v's type. Head h of v goes with head h // (v_heads / k_heads) of q and k.
        A run from position 0 on begins with zeros, whatever its slot holds. All in f32.
        """
        ...

    def silu_mul(self, x: Tensor) -> Tensor:
        """[tokens, 2 * n] → [tokens, n]: silu(first half) * second half."""
        ...

    def elementwise(self, expression: Expression, *inputs: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The expression of these inputs (kernels/expression.py), feature by feature: each [tokens, n], maybe some
        columns of something wider, or [tokens, 1], or [n], which is the same for all tokens → [tokens, n] in `dtype`,
        or in that of the first input over tokens. Computed in f32, rounded once. ValueError for other shapes."""
        ...

    def route(self, logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
        """Each token's k experts: logits [tokens, experts] f32 → (weights [tokens, k] f32, ids [tokens, k] int32).

        The largest k of softmax(logits), largest first, the lowest id of equal ones first; `renormalize`: divided by
        their sum (Mixtral, Qwen3-MoE), else as they are (Qwen2-MoE). Ids are below `experts` even where logits are NaN.
        """
        ...

    def experts(
        self, x: Tensor, weights: Tensor, ids: Tensor, gate_up: PreparedExperts, down: PreparedExperts
    ) -> Tensor:
        """A mixture of gated MLPs: x [tokens, hidden], weights [tokens, k] f32, ids [tokens, k] int32, gate_up
        [experts, 2 * inner, hidden], down [experts, hidden, inner] → [tokens, hidden]: the sum over j of
        weights[:, j] * down[e] @ silu_mul(gate_up[e] @ x), e = ids[:, j], summed in f32. Products as in `linear`. An
        expert may have any number of tokens, or none."""
        ...

    def gather_rows(self, x: Tensor, index: Tensor) -> Tensor:
        """[tokens, n], [m] int64 → [m, n]."""
        ...

    def mask(self, logits: Tensor, places: Tensor, allowed: Tensor) -> None:
        """In place on logits [samples, vocab] f32: -inf for tokens that row i may not take. Which it may stands in row
        places[i] of allowed [n, ceil(vocab / 32)] int32: bit t % 32 of word t // 32. places[i] < 0: all, row i is left
        alone."""
        ...

    def penalize(self, logits: Tensor, rows: PenaltyRows) -> None:
        """In place on logits [samples, vocab] f32: repetition (divide positive, multiply negative logits of tokens in
        prompt or output), then frequency * count and presence * (count > 0) subtracted."""
        ...

    def sample(self, logits: Tensor, rows: SamplingRows) -> Tensor:
        """[samples, vocab] f32 → [samples] int64 token ids; -1 where a logit is NaN or the largest is not finite.

        Per row: temperature 0 is argmax (lowest id on ties); otherwise scale by 1/temperature, keep top_k (<= 0:
        all), then top_p (1: all) of what is left, then min_p (0: all), and draw with noise that is a pure
        function of (seed int64, index int64 of the output token, token id)."""
        ...

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
        """log-softmax of [samples, vocab] f32 → chosen [samples], top values and ids [samples, num_top]."""
        ...

    def decode_step(self, rows: Tensor, state: DeviceRows, block_size: int, max_context_len: int) -> Step:
        """The inputs of one new token of each of `rows` [n] int32, which may name the padding row repeatedly, made from
        the device's state alone: its last token at position num_computed. Page tables are not copied: page_ids is all
        of block_tables, and `tight` is False. Nothing is read back, so a graph can hold it."""
        ...

    def decode_done(self, rows: Tensor, token_ids: Tensor, state: DeviceRows) -> None:
        """After such a step sampled token_ids [n] int64: last_token[rows] = token_ids (0 where one is -1), and one more
        is computed, and one more output. The padding row stays as it is."""
        ...
