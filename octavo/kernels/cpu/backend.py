"""The native backend's operations. Made by kernels/registry.py; implements kernels.ops.Ops.

While a step is recorded an operation adds a node to the recording and returns a tensor that stands for its result; at
all other times it is run at once. Activations are f32 whatever the dtype, which decides how dense weights and KV pages
are held: bfloat16 also rounds what is multiplied with such weights, float16 does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.errors import ConfigError
from octavo.kernels import expression as expressions
from octavo.kernels.cpu import _native
from octavo.kernels.cpu.immediate import Immediate
from octavo.kernels.cpu.layouts import Packed, pack
from octavo.kernels.cpu.mixture import Experts, PackedExperts, Route
from octavo.kernels.cpu.nodes import (
    Attend,
    Elementwise,
    Embed,
    GatherRows,
    Linear,
    Norm,
    Pages,
    Rope,
    SiluMul,
    Sink,
    padded,
)
from octavo.kernels.cpu.record import RecordedStep, Recording, StepRecording
from octavo.kernels.cpu.recurrent import DeltaRule, HeadNorm, ShortConv
from octavo.kernels.expression import Expression
from octavo.kernels.layouts import DTYPES, Dense, Layout, Prepared, PreparedExperts
from octavo.kernels.ops import Compute, HeadNorms, Result
from octavo.kernels.recorded import PermanentRows, StepModel, Steps
from octavo.kernels.reference import rows as of_rows
from octavo.kernels.rows import DeviceRows
from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows
from octavo.kernels.step import LayerCache, Step

KV_KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "float16": 3}
"""csrc/types.h's KvKind."""

PRODUCTS = {
    "avx512": "int4 and int8 weights by VNNI, bf16 by AVX512_BF16, f16 and f32 by FMA",
    "avx2": "int4 and int8 weights by VPMADDUBSW, bf16, f16 and f32 by FMA",
    "portable": "plain C++ on vectors",
}
"""How each instruction set multiplies, for octavo doctor."""


def known_isas() -> list[str]:
    """Instruction sets that were compiled and that this machine runs, best first."""
    return _native.isas()


def choose_isa(forced: str | None) -> str:
    """The best, or the forced one. Raises ConfigError when this machine cannot run that."""
    isas = known_isas()
    if forced is not None and forced not in isas:
        raise ConfigError(f"OCTAVO_CPU_ISA={forced}: this machine runs {', '.join(isas)}")
    return forced or isas[0]


def supports(dtype: str, kv_dtype: str) -> str | None:
    """None, or the reason why not."""
    if dtype not in DTYPES:
        return f"dense weights are {', '.join(DTYPES)}, not {dtype}"
    return None if kv_dtype in KV_KINDS else f"KV pages are {', '.join(KV_KINDS)}, not {kv_dtype}"


class CpuOps:
    name = "cpu"
    activations = torch.float32
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype, kv_dtype: str, isa: str, threads: int) -> None:
        self.dtype, self.isa = dtype, isa
        self._kv_kind = KV_KINDS[kv_dtype]
        self.pool = _native.Pool(threads)
        self.notes: Sequence[str] = [f"native kernels for {isa}, {threads} thread{'s' * (threads > 1)}"]
        self._recording: Recording | None = None
        torch.set_num_threads(1)  # a second pool would fight ours

    def prepare(self, parts: Sequence[Layout]) -> Packed:
        """In float32 all are dense: products of quantized matrices round what they multiply to 8 bits, and who asks for
        float32 wants no rounding."""
        if self.dtype == torch.float32:
            parts = [Dense(part.dequantize(torch.float32)) for part in parts]
        return pack(parts, self.dtype)

    def prepare_table(self, table: Layout) -> Packed:
        return pack([table], self.dtype)

    def prepare_experts(self, experts: Sequence[Sequence[Layout]]) -> PreparedExperts:
        return PackedExperts(tuple(self.prepare(parts) for parts in experts))

    def kv_page(self, block_size: int, kv_heads: int, head_dim: int) -> tuple[tuple[int, ...], torch.dtype]:
        return (_native.kv_page_bytes(self._kv_kind, block_size, kv_heads, head_dim),), torch.uint8

    def record(
        self, model: StepModel, kv: Sequence[LayerCache], rows: PermanentRows, max_tokens: int, block_size: int
    ) -> Steps:
        sampled, whole = (self._record(model, kv, Recording(block_size, len(rows.windows))) for _ in range(2))
        return RecordedStep(self, sampled, whole, rows, max_tokens)

    def _record(self, model: StepModel, kv: Sequence[LayerCache], recording: Recording) -> StepRecording:
        self._recording = recording
        try:
            hidden = model(recording.step, kv)
            logits = model.logits(self.gather_rows(hidden, recording.step.logits_index))
            return StepRecording(recording, hidden, logits)
        finally:
            self._recording = None

    def _sink(self, rows: int, step: Step | None = None) -> Sink:
        return self._recording or Immediate(self.pool, self.isa, rows, step)

    def host(
        self,
        name: str,
        compute: Compute,
        inputs: Sequence[Tensor],
        results: Sequence[Result],
        step: Step | None = None,
    ) -> Sequence[Tensor]:
        if self._recording is None:
            return compute(*inputs) if step is None else compute(step, *inputs)
        note = f"{name} has no native kernel: it runs in PyTorch, between two parts of the recorded step"
        if note not in self.notes:
            self.notes = [*self.notes, note]
        return self._recording.host(name, compute, inputs, results, None if step is None else step.group)

    def embedding(self, token_ids: Tensor, table: Prepared) -> Tensor:
        (matrix,) = _packed(table).parts
        sink = self._sink(token_ids.shape[0])
        out, target = sink.output(matrix.k)
        sink.add(Embed(matrix, sink.ids(token_ids), target))
        return out

    def linear(self, x: Tensor, weight: Prepared, bias: Tensor | None = None) -> Tensor:
        return self._product(x, weight, bias, 0)

    def logits(self, x: Tensor, weight: Prepared) -> Tensor:
        return self._product(x, weight, None, weight.shape[0])

    def _product(self, x: Tensor, weight: Prepared, bias: Tensor | None, ld: int) -> Tensor:
        assert bias is None or bias.dtype == torch.float32
        sink = self._sink(x.shape[0])
        source = sink.rows(x)
        out, target = sink.output(weight.shape[0], source.samples, ld)
        sink.add(Linear(source, _packed(weight), bias, target))
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.dim() == 3:
            return self._head_norm(x, weight, eps)
        return self._norm(x, None, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if residual is None:
            return self._norm(x, None, weight, eps), x
        return self._norm(residual, x, weight, eps), residual

    def _norm(self, x: Tensor, add: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        assert weight.dtype == torch.float32 and weight.is_contiguous()
        sink = self._sink(x.shape[0])
        source = sink.whole(x) if add is None else sink.value(x)[0]  # that one is added to in place
        out, target = sink.output(source.width, source.samples, padded(source.width))
        sink.add(Norm(source, None if add is None else sink.whole(add), weight, eps, target))
        return out.contiguous()

    def _head_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        assert weight.dtype == torch.float32 and weight.is_contiguous()
        sink = self._sink(x.shape[0])
        source = sink.value(x)
        out, target = sink.output(x.shape[1:].numel())
        sink.add(HeadNorm(source, x.shape[1], weight, eps, target))
        return out.view(x.shape)

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
        heads, head_dim = q.shape[1:]
        sink = self._sink(q.shape[0], step)
        out, target = sink.output(heads * head_dim)
        pages = self._pages(kv, step, head_dim)
        sink.add(Rope(sink.value(q), sink.value(k), sink.value(v), heads, cos_sin, norms, pages, target))
        return out.view(q.shape)

    def attention(
        self, q: Tensor, kv: Tensor, step: Step, scale: float, window: int | None = None, soft_cap: float | None = None
    ) -> Tensor:
        heads, head_dim = q.shape[1:]
        sink = self._sink(q.shape[0], step)
        out, target = sink.output(heads * head_dim)
        pages = self._pages(kv, step, head_dim)
        sink.add(Attend(sink.whole(q), heads, pages, scale, window, soft_cap, target))
        return out

    def _pages(self, kv: Tensor, step: Step, head_dim: int) -> Pages:
        of_one_head = _native.kv_page_bytes(self._kv_kind, step.block_size, 1, head_dim)
        return Pages(kv, self._kv_kind, step.block_size, kv.shape[2] // of_one_head, head_dim, step.group)

    def short_conv(self, x: Tensor, weight: Tensor, state: Tensor, step: Step) -> Tensor:
        assert weight.is_contiguous() and state.is_contiguous() and weight.dtype == state.dtype == torch.float32
        sink = self._sink(x.shape[0], step)
        source = sink.value(x)
        out, target = sink.output(x.shape[1])
        sink.add(ShortConv(source, weight, state, target))
        return out

    def delta_rule(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, step: Step) -> Tensor:
        assert state.is_contiguous() and state.dtype == torch.float32
        sink = self._sink(v.shape[0], step)
        q_part, k_part, v_part, g_part, beta_part = (sink.value(x) for x in (q, k, v, g, beta))
        out, target = sink.output(v.shape[1:].numel())
        sink.add(DeltaRule((q_part, k_part, v_part, g_part, beta_part), q.shape[1], state, target))
        return out.view(v.shape)

    def silu_mul(self, x: Tensor) -> Tensor:
        sink = self._sink(x.shape[0])
        source = sink.whole(x)
        out, target = sink.output(source.width // 2, source.samples, padded(source.width // 2))
        sink.add(SiluMul(source, target))
        return out.contiguous()

    def elementwise(self, expression: Expression, *inputs: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        assert dtype in (None, torch.float32), f"native activations are float32, not {dtype}"
        expressions.check(expression, inputs)
        first, n = next(x for x in inputs if x.dim() == 2), expressions.width(inputs)
        sink = self._sink(first.shape[0])
        sources = [(*sink.value(x), x.shape[1]) if x.dim() == 2 else x.float().contiguous() for x in inputs]
        samples = any(isinstance(source, tuple) and source[0].samples for source in sources)
        out, target = sink.output(n, samples, padded(n))
        sink.add(Elementwise(expressions.instructions(expression), sources, target))
        return out.contiguous()

    def route(self, logits: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
        sink = self._sink(logits.shape[0])
        source = sink.whole(logits)
        weights, of_weights = sink.output(k, source.samples)
        ids, of_ids = sink.output(k, source.samples)
        sink.add(Route(source, k, renormalize, of_weights, of_ids))
        return weights, ids.view(torch.int32)

    def experts(
        self, x: Tensor, weights: Tensor, ids: Tensor, gate_up: PreparedExperts, down: PreparedExperts
    ) -> Tensor:
        assert isinstance(gate_up, PackedExperts) and isinstance(down, PackedExperts), "these were not prepared here"
        sink = self._sink(x.shape[0])
        source, chosen = sink.rows(x), (sink.whole(weights), sink.whole(ids.view(torch.float32)))
        out, target = sink.output(source.width, source.samples, padded(source.width))
        sink.add(Experts(source, *chosen, gate_up, down, target))
        return out.contiguous()

    def gather_rows(self, x: Tensor, index: Tensor) -> Tensor:
        sink = self._sink(x.shape[0])
        sink.gather(index)
        source = sink.whole(x)
        out, target = sink.output(source.width, samples=True)
        sink.add(GatherRows(source, target))
        return out

    def mask(self, logits: Tensor, places: Tensor, allowed: Tensor) -> None:
        assert logits.is_contiguous() and allowed.is_contiguous() and allowed.dtype == torch.int32
        vocab, words = logits.shape[1], allowed.shape[1]
        assert words == -(-vocab // 32)
        for i, place in enumerate(places.tolist()):
            if place >= 0:
                row = logits.data_ptr() + 4 * vocab * i
                _native.mask(self.isa, row, vocab, allowed.data_ptr() + 4 * words * place)

    def penalize(self, logits: Tensor, rows: PenaltyRows) -> None:
        places, counts, seen, *settings = rows
        assert logits.is_contiguous() and counts.dtype == torch.int32 and seen.dtype == torch.bool
        vocab = logits.shape[1]
        values_of = zip(*(each.tolist() for each in settings), strict=True)
        for i, (place, values) in enumerate(zip(places.tolist(), values_of, strict=True)):
            if place >= 0:
                at = 4 * vocab * place
                _native.penalize(
                    self.isa,
                    logits.data_ptr() + 4 * vocab * i,
                    vocab,
                    counts.data_ptr() + at,
                    seen.data_ptr() + at // 4,
                    *values,
                )

    def sample(self, logits: Tensor, rows: SamplingRows) -> Tensor:
        floats = torch.stack((rows.temperature, rows.top_p, rows.min_p), dim=1)
        ints = torch.stack((rows.top_k, rows.seeds, rows.indices), dim=1)
        logits = logits.contiguous()
        settings = floats.data_ptr(), 3, ints.data_ptr(), 3
        vocab = logits.shape[1]
        return torch.tensor(
            _native.sample_rows(
                self.pool, self.isa, logits.data_ptr(), vocab, vocab, list(range(len(ints))), *settings
            ),
            dtype=torch.int64,
        )

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
        samples, vocab = logits.shape
        logits, ids = logits.contiguous(), token_ids.tolist()
        at, row = logits.data_ptr(), 4 * vocab
        found = [_native.logprobs(self.isa, at + i * row, vocab, [ids[i]], num_top) for i in range(samples)]
        chosen, top, top_ids = ([entry[part] for entry in found] for part in range(3))
        return (
            torch.tensor(chosen, dtype=torch.float32).view(samples),
            torch.tensor(top, dtype=torch.float32).view(samples, num_top),
            torch.tensor(top_ids, dtype=torch.int64).view(samples, num_top),
        )

    def decode_step(self, rows: Tensor, state: DeviceRows, block_size: int, max_context_len: int) -> Step:
        return of_rows.decode_step(rows, state, block_size, max_context_len)

    def decode_done(self, rows: Tensor, token_ids: Tensor, state: DeviceRows) -> None:
        of_rows.decode_done(rows, token_ids, state)


def _packed(weight: Prepared) -> Packed:
    assert isinstance(weight, Packed), f"{type(weight).__name__} was not prepared for the native backend"
    return weight
