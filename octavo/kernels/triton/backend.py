"""The CUDA backend: every operation by the Triton kernels beside this file, dense products of many rows by cuBLASLt.

Made by kernels/registry.py. Activations, weights and pages are on one device; a quantized matrix stays as small as the
file has it. Invariant: holds no state between operations but what the chosen attention keeps, a plan of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.attention import Attention
from octavo.kernels.expression import Expression
from octavo.kernels.layouts import (
    Dense,
    Float8Groups,
    Int4Groups,
    Int8Groups,
    Layout,
    Prepared,
    PreparedExperts,
    fused_neighbours,
    same_form,
)
from octavo.kernels.ops import Compute, HeadNorms, Result
from octavo.kernels.recorded import PermanentRows, StepModel
from octavo.kernels.rows import DeviceRows
from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows
from octavo.kernels.step import LayerCache, Step
from octavo.kernels.triton import (
    activation,
    attention,
    edits,
    elementwise,
    embedding,
    linear,
    logprobs,
    moe,
    norm,
    recurrent,
    rope,
    sampling,
)
from octavo.kernels.triton import rows as of_rows

KV_TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
}
Part = Dense | Int8Groups | Float8Groups | linear.GroupedInt4
_PARTS = (Dense, Int8Groups, Float8Groups, linear.GroupedInt4)


@dataclass(frozen=True)
class Stacked:
    """A matrix whose parts have different forms, under one another along out_features."""

    parts: list[Part]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([part.dequantize(dtype) for part in self.parts])


class TritonOps:
    """Implements kernels.ops.Ops; the docstrings there say what each operation means."""

    name = "triton"

    def __init__(
        self,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        device: torch.device | str,
        attend: Attention = attention.attention,
    ) -> None:
        """`attend`: as kernels/attention.py chose it."""
        self.dtype = dtype
        self.activations = dtype
        self.device = torch.device(device)
        self.notes: Sequence[str] = ()
        self._kv_dtype = kv_dtype
        self._attend = attend

    def prepare(self, parts: Sequence[Layout]) -> Prepared:
        prepared = [self._on_device(part) for part in fused_neighbours(parts)]
        return prepared[0] if len(prepared) == 1 else Stacked(prepared)

    def prepare_table(self, table: Layout) -> Prepared:
        """A quantized one stays as the file has it: only the rows of a step are made dense."""
        if isinstance(table, Int4Groups):
            to = self.device
            return Int4Groups(table.packed.to(to), table.scales.to(to), table.minimums.to(to))
        return self._on_device(table)

    def prepare_experts(self, experts: Sequence[Sequence[Layout]]) -> PreparedExperts:
        """In one stack. Where forms differ, from expert to expert or part to part, all are made dense."""
        parts = [part for expert in experts for part in expert]
        if not same_form(parts):
            parts = [Dense(part.dequantize(self.dtype)) for part in parts]
        return moe.StackedExperts(self._on_device(parts[0].fuse(parts[1:])), len(experts))

    def _on_device(self, part: Layout) -> Part:
        to = self.device
        if isinstance(part, Dense):
            return Dense(part.data.to(to, self.dtype).contiguous())
        if isinstance(part, (Int8Groups, Float8Groups)):
            return linear.known_groups(type(part)(part.q.to(to), part.scales.to(to)))
        assert isinstance(part, Int4Groups)
        return linear.GroupedInt4.pack(Int4Groups(part.packed.to(to), part.scales.to(to), part.minimums.to(to)))

    def kv_page(self, block_size: int, kv_heads: int, head_dim: int) -> tuple[tuple[int, ...], torch.dtype]:
        return (block_size, kv_heads, head_dim), self._kv_dtype

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
        assert isinstance(table, (Dense, Int8Groups, Float8Groups, Int4Groups)), f"{type(table).__name__} is no table"
        return embedding.embedding(token_ids, table, self.dtype)

    def linear(self, x: Tensor, weight: Prepared, bias: Tensor | None = None) -> Tensor:
        return self._product(x, weight, bias, x.dtype)

    def logits(self, x: Tensor, weight: Prepared) -> Tensor:
        return self._product(x, weight, None, torch.float32)

    def _product(self, x: Tensor, weight: Prepared, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        if isinstance(weight, Dense) and x.shape[0] > 1:
            return _dense(x, weight.data, bias, dtype)
        parts = weight.parts if isinstance(weight, Stacked) else [weight]
        out = torch.empty((x.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
        at = 0
        for part in parts:
            assert isinstance(part, _PARTS), f"{type(part).__name__} was not prepared"
            end = at + part.shape[0]
            of_part = None if bias is None else bias[at:end]
            if not isinstance(part, Dense):
                linear.grouped(x, part, of_part, out[:, at:end])
            elif x.shape[0] == 1:
                linear.dense_row(x, part.data, of_part, out[:, at:end])
            else:
                out[:, at:end] = _dense(x, part.data, of_part, dtype)
            at = end
        return out

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
        return rope.rope_cache(q, k, v, cos_sin, kv, step.positions, step.slots, norms)

    def attention(
        self, q: Tensor, kv: Tensor, step: Step, scale: float, window: int | None = None, soft_cap: float | None = None
    ) -> Tensor:
        # A step of the device's own rows may be captured: what plans on the host would read them back.
        attend = self._attend if step.tight else attention.attention
        return attend(q, kv, step, scale, window, soft_cap)

    def short_conv(self, x: Tensor, weight: Tensor, state: Tensor, step: Step) -> Tensor:
        return recurrent.short_conv(x, weight, state, step)

    def delta_rule(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, step: Step) -> Tensor:
        return recurrent.delta_rule(q, k, v, g, beta, state, step)

    def silu_mul(self, x: Tensor) -> Tensor:
        return activation.silu_mul(x)

    def elementwise(self, expression: Expression, *inputs: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return elementwise.elementwise(expression, inputs, dtype)

    def route(self, logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
        return moe.route(logits, k, renormalize)

    def experts(
        self, x: Tensor, weights: Tensor, ids: Tensor, gate_up: PreparedExperts, down: PreparedExperts
    ) -> Tensor:
        assert isinstance(gate_up, moe.StackedExperts) and isinstance(down, moe.StackedExperts), "not prepared here"
        return moe.experts(x, weights, ids, gate_up, down)

    def gather_rows(self, x: Tensor, index: Tensor) -> Tensor:
        return embedding.gather_rows(x, index)

    def mask(self, logits: Tensor, places: Tensor, allowed: Tensor) -> None:
        edits.mask(logits, places, allowed)

    def penalize(self, logits: Tensor, rows: PenaltyRows) -> None:
        edits.penalize(logits, rows)

    def sample(self, logits: Tensor, rows: SamplingRows) -> Tensor:
        return sampling.sample(logits, rows)

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
        return logprobs.logprobs(logits, token_ids, num_top)

    def decode_step(self, rows: Tensor, state: DeviceRows, block_size: int, max_context_len: int) -> Step:
        return of_rows.decode_step(rows, state, block_size, max_context_len)

    def decode_done(self, rows: Tensor, token_ids: Tensor, state: DeviceRows) -> None:
        of_rows.decode_done(rows, token_ids, state)


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Many rows: the library's product, not rounded below `dtype` where it is f32."""
    if dtype == x.dtype:
        return F.linear(x, weight, bias)
    assert bias is None
    if x.device.type == "cuda":
        return torch.mm(x, weight.t(), out_dtype=dtype)
    return F.linear(x.to(dtype), weight.to(dtype))
