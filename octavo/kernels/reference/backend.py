"""The reference backend: every operation in plain PyTorch. The oracle of all others, and the CPU's backend until one
is faster. Made by kernels/registry.py.

Invariant: holds no state but, for each cache group, the plan of the step it was last given, kept by its identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels import expression as expressions
from octavo.kernels.expression import Expression
from octavo.kernels.layouts import Dense, Layout, Prepared, PreparedExperts
from octavo.kernels.ops import Compute, HeadNorms, Result
from octavo.kernels.recorded import PermanentRows, StepModel
from octavo.kernels.reference import activation, attention, embedding, linear, moe, norm, recurrent, rope, sampling
from octavo.kernels.reference import rows as of_rows
from octavo.kernels.rows import DeviceRows
from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows
from octavo.kernels.step import LayerCache, Step


class _StepPlan:
    """What the layers of one step share: the attention plan and the angles of each rotary table."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.attention = attention.make_plan(step)
        self._angles: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

    def angles(self, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
        for table, found in self._angles:
            if table is cos_sin:
                return found
        found = rope.gather_cos_sin(cos_sin, self.step.positions)
        self._angles.append((cos_sin, found))
        return found


class ReferenceOps:
    """Implements kernels.ops.Ops; the docstrings there say what each operation means."""

    name = "reference"

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu", threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.dtype = dtype
        self.activations = dtype
        self.device = torch.device(device)
        self.notes: Sequence[str] = ()
        self._planned: dict[int, _StepPlan] = {}

    def _plan(self, step: Step) -> _StepPlan:
        planned = self._planned.get(step.group)
        if planned is None or planned.step is not step:
            planned = self._planned[step.group] = _StepPlan(step)
        return planned

    def prepare(self, parts: Sequence[Layout]) -> Dense:
        return linear.prepare(parts, self.dtype, self.device)

    def prepare_table(self, table: Layout) -> Prepared:
        """A quantized one stays as the file has it: only the rows of a step are made dense."""
        return self.prepare([table]) if isinstance(table, Dense) else table

    def prepare_experts(self, experts: Sequence[Sequence[Layout]]) -> PreparedExperts:
        return moe.ListedExperts(tuple(self.prepare(parts) for parts in experts))

    def kv_page(self, block_size: int, kv_heads: int, head_dim: int) -> tuple[tuple[int, ...], torch.dtype]:
        return (block_size, kv_heads, head_dim), self.dtype

    def record(
        self, model: StepModel, kv: Sequence[LayerCache], rows: PermanentRows, max_tokens: int, block_size: int
    ) -> None:
        return None

    def host(
        self,
        name: str,
        compute: Compute,
        inputs: Sequence[Tensor],
        results: Sequence[Result],
        step: Step | None = None,
    ) -> Sequence[Tensor]:
        return compute(*inputs) if step is None else compute(step, *inputs)

    def embedding(self, token_ids: Tensor, table: Prepared) -> Tensor:
        return embedding.embedding(token_ids, table, self.dtype)

    def linear(self, x: Tensor, weight: Prepared, bias: Tensor | None = None) -> Tensor:
        return linear.linear(x, weight, bias)

    def logits(self, x: Tensor, weight: Prepared) -> Tensor:
        return linear.logits(x, weight)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return norm.add_rms_norm(x, residual, weight, eps)

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
        cos, sin = self._plan(step).angles(cos_sin)
        dtype = q.dtype
        if norms is not None:
            q, k = (norm.rms_norm(x.float(), w, norms.eps) for x, w in ((q, norms.q), (k, norms.k)))
        rope.write_pages(rope.rotate(k, cos, sin).to(dtype), v, kv, step.slots)
        return rope.rotate(q, cos, sin).to(dtype).contiguous()

    def attention(
        self, q: Tensor, kv: Tensor, step: Step, scale: float, window: int | None = None, soft_cap: float | None = None
    ) -> Tensor:
        return attention.attention(q, kv, self._plan(step).attention, scale, window, soft_cap)

    def short_conv(self, x: Tensor, weight: Tensor, state: Tensor, step: Step) -> Tensor:
        return recurrent.short_conv(x, weight, state, step)

    def delta_rule(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, step: Step) -> Tensor:
        return recurrent.delta_rule(q, k, v, g, beta, state, step)

    def silu_mul(self, x: Tensor) -> Tensor:
        return activation.silu_mul(x)

    def elementwise(self, expression: Expression, *inputs: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return expressions.evaluate(expression, inputs, dtype)

    def route(self, logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
        return moe.route(logits, k, renormalize)

    def experts(
        self, x: Tensor, weights: Tensor, ids: Tensor, gate_up: PreparedExperts, down: PreparedExperts
    ) -> Tensor:
        return moe.experts(x, (weights, ids), gate_up, down, self.linear, self.silu_mul)

    def gather_rows(self, x: Tensor, index: Tensor) -> Tensor:
        return embedding.gather_rows(x, index)

    def mask(self, logits: Tensor, places: Tensor, allowed: Tensor) -> None:
        sampling.mask(logits, places, allowed)

    def penalize(self, logits: Tensor, rows: PenaltyRows) -> None:
        sampling.penalize(logits, rows)

    def sample(self, logits: Tensor, rows: SamplingRows) -> Tensor:
        return sampling.sample(logits, rows)

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
        return sampling.logprobs(logits, token_ids, num_top)

    def decode_step(self, rows: Tensor, state: DeviceRows, block_size: int, max_context_len: int) -> Step:
        return of_rows.decode_step(rows, state, block_size, max_context_len)

    def decode_done(self, rows: Tensor, token_ids: Tensor, state: DeviceRows) -> None:
        of_rows.decode_done(rows, token_ids, state)
