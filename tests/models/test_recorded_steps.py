"""Whatever a model's step consists of, its recording computes what its operations do one by one: element-wise work,
norms before and after a block, and what has no native kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from test_llama import random_ids
from test_native import RecordedPaged, native
from tiny_models import BLOCK_SIZE, VOCAB, Paged
from torch import Tensor

from octavo.kernels import expression as ex
from octavo.kernels.layouts import Dense, Int8Groups, Layout, Prepared
from octavo.kernels.ops import Ops, Result
from octavo.kernels.recorded import Runs
from octavo.kernels.step import Step
from octavo.worker.batch import Batch

record = pytest.importorskip("octavo.kernels.cpu.record", reason="the native kernels are not built")
native_cpu = pytest.importorskip("octavo.kernels.cpu.backend", reason="the native kernels are not built")

I32 = torch.int32
HIDDEN, INNER = 64, 96
GATE, UP = ex.Input(0), ex.Input(1)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 4


@dataclass
class Sandwich:
    """Blocks of an MLP alone, its result normalized again before it is added; embedding scaled, logits capped."""

    ops: Ops
    quantized: bool = False

    def __post_init__(self) -> None:
        self.nbytes = 0
        self.table = self.ops.prepare_table(Dense(randn(VOCAB, HIDDEN, seed=0)))
        self.head = self.weight(VOCAB, HIDDEN, 1)
        self.blocks = [
            (self.weight(2 * INNER, HIDDEN, 2 + i), self.weight(HIDDEN, INNER, 12 + i), randn(HIDDEN, seed=22 + i) + 1)
            for i in range(2)
        ]
        self.norm = randn(HIDDEN, seed=32) + 1

    def weight(self, n: int, k: int, seed: int) -> Prepared:
        layout: Layout = Dense(randn(n, k, seed=seed))
        if self.quantized:
            q = (100 * randn(n, k, seed=seed)).clamp(-127, 127).to(torch.int8)
            layout = Int8Groups(q, randn(n, k // 32, seed=seed + 50).abs() / 50 + 0.001)
        return self.ops.prepare([layout])

    def __call__(self, step: Step, kv: Sequence[Tensor]) -> Tensor:
        ops, residual = self.ops, None
        x = ops.elementwise(GATE * 8.0, ops.embedding(step.token_ids, self.table))
        for gate_up, down, norm in self.blocks:
            x, residual = ops.add_rms_norm(x, residual, self.norm, 1e-5)
            both = ops.linear(x, gate_up)
            inner = ops.elementwise(ex.gelu_tanh(GATE) * UP, both[:, :INNER], both[:, INNER:])
            x = ops.rms_norm(ops.linear(inner, down), norm, 1e-5)
        return ops.add_rms_norm(x, residual, self.norm, 1e-5)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.ops.elementwise(ex.soft_cap(GATE, 3.0), self.ops.logits(hidden, self.head))


def over(kind: type[Paged], model: Sandwich, windows: Sequence[int | None] = (None,)) -> Paged:
    return kind(model, Batch(8, 128, BLOCK_SIZE, windows), [], list(range(128)))


@pytest.mark.parametrize("isa", native_cpu.known_isas())
@pytest.mark.parametrize(("dtype", "quantized"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_norms_around_blocks_and_elementwise_work(isa: str, dtype: str, quantized: bool) -> None:
    ops, ids = native(dtype, isa=isa), random_ids(60)
    model = Sandwich(ops, quantized)
    recorded = over(RecordedPaged, model)
    assert isinstance(recorded, RecordedPaged)
    found = recorded.record(ops).whole(ids, [1, 40, 19])
    assert torch.equal(found, over(Paged, model).whole(ids))
    assert 2.5 < found.abs().max() <= 3.0


class WithoutKernels(Sandwich):
    """Operations that only exist here: one of every token that looks at the step, one whose result has another shape
    and type, and one of logits."""

    fails = False

    def __call__(self, step: Step, kv: Sequence[Tensor]) -> Tensor:
        hidden = super().__call__(step, kv)
        ops = self.ops
        assert isinstance(ops, native_cpu.CpuOps)
        counts = torch.arange(1.0, HIDDEN + 1) / HIDDEN
        (x,) = ops.host("ordinal", self.ordinal, [hidden[:, : HIDDEN // 2], counts], [Result((HIDDEN,))], step)
        heads, order = ops.host(
            "sorted", self.sorted, [x.view(-1, 4, HIDDEN // 4)], [Result((4, 16)), Result((4, 16), I32)]
        )
        (x,) = ops.host("unsorted", self.unsorted, [heads, order], [Result((HIDDEN,))])
        return ops.rms_norm(x, self.norm, 1e-5)

    def ordinal(self, step: Step, x: Tensor, counts: Tensor) -> list[Tensor]:
        if self.fails:
            raise RuntimeError("a host that fails")
        assert x.shape[0] == step.num_tokens and step.query_start[-1] == step.num_tokens
        assert torch.equal(step.context_lens, step.positions[step.query_start[1:].long() - 1].int() + 1)
        places = step.positions + step.token_ids + step.rows.repeat_interleave(step.query_start.diff())
        return [torch.cat([x, x + 1], dim=1) * counts + places[:, None] / 10]

    def sorted(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = x.sort(dim=-1)
        return found.values, found.indices.int()

    def unsorted(self, x: Tensor, order: Tensor) -> list[Tensor]:
        return [torch.zeros_like(x).scatter(-1, order.long(), x).flatten(1)]

    def logits(self, hidden: Tensor) -> Tensor:
        assert isinstance(self.ops, native_cpu.CpuOps)
        (found,) = self.ops.host("sine", lambda x: [x.sin() * 3], [super().logits(hidden)], [Result((VOCAB,))])
        return found


def test_what_has_no_kernel_runs_in_pytorch_and_is_said_once() -> None:
    ops, ids = native(), random_ids(60)
    model = WithoutKernels(ops)
    recorded, eager = over(RecordedPaged, model), over(Paged, model)
    assert isinstance(recorded, RecordedPaged)
    recorded.record(ops)
    assert [sum(note.startswith(name) for note in ops.notes) for name in ("ordinal", "sorted", "unsorted", "sine")] == [
        1, 1, 1, 1,
    ]  # fmt: skip
    assert torch.equal(recorded.whole(ids, [1, 40, 19]), eager.whole(ids))


class OfTheSecondGroup(WithoutKernels):
    def __call__(self, step: Step, kv: Sequence[Tensor]) -> Tensor:
        return super().__call__(step.of(1), kv)

    def ordinal(self, step: Step, x: Tensor, counts: Tensor) -> list[Tensor]:
        assert step.group == 1
        (found,) = super().ordinal(step, x, counts)
        return [found + step.slots[:, None] / 100 + step.page_ids.sum()]


def test_what_has_no_kernel_sees_the_blocks_of_its_layers_group() -> None:
    ops, ids = native(), random_ids(60)
    recorded, eager = (over(kind, OfTheSecondGroup(ops), (None, 20)) for kind in (RecordedPaged, Paged))
    assert isinstance(recorded, RecordedPaged)
    found, wanted = recorded.record(ops).whole(ids, [1, 40, 19]), eager.whole(ids, [1, 40, 19])
    assert torch.equal(found, wanted)
    assert (recorded.batch.block_tables[0] != recorded.batch.block_tables[1]).any()


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_steps_with_host_nodes_sample_from_many_rows(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of rows, tokens and samples, logits in chunks, masks."""
    monkeypatch.setattr(record, "LEAST_CHUNK", chunk)
    monkeypatch.setattr(record, "LOGITS_BYTES", 1)
    ops = native()
    model = WithoutKernels(ops)
    recorded, eager = over(RecordedPaged, model), over(Paged, model)
    assert isinstance(recorded, RecordedPaged)
    steps = recorded.record(ops).recorded
    assert steps.chunk == min(chunk, 8)
    counts = [3, 1, 7, 9, 2, 1, 5, 4]
    for paged in (recorded, eager):
        for row, n in enumerate(counts):
            paged.admit(row, random_ids(n, seed=row))
    whole = eager.run(dict(enumerate(counts)))
    wanted = [int(whole[row][-1].argmax()) for row in range(8)]
    assert steps.fused(Runs(list(range(8)), counts, [True] * 8)) == wanted
    for paged in (recorded, eager):  # one token more each: of rows in another order, of which some may take few tokens
        for row in range(8):
            paged.batch.num_tokens[row] = counts[row] + 1
            paged.batch.num_computed[row] = counts[row]
            paged.batch.token_ids[row, counts[row]] = wanted[row]
    order, allowed = [5, 2, 7, 0, 1], {7: [3, 9, 64], 1: [159]}
    logits = eager.run(dict.fromkeys(order, 1))
    steps.begin(Runs(order, [1] * 5, [True] * 5))
    assert steps.sample([_mask(allowed[row]) if row in allowed else None for row in order]) == [
        max(allowed.get(row, range(VOCAB)), key=lambda token, row=row: float(logits[row][0, token]))  # type: ignore[misc]
        for row in order
    ]


def _mask(tokens: list[int]) -> bytes:
    return sum(1 << token for token in tokens).to_bytes(VOCAB // 8, "little")


def test_a_host_that_fails_ends_its_step_alone() -> None:
    ops = native()
    model = WithoutKernels(ops)
    recorded = over(RecordedPaged, model)
    assert isinstance(recorded, RecordedPaged)
    recorded.record(ops).admit(0, random_ids(5))
    model.fails = True
    with pytest.raises(RuntimeError, match="a host that fails"):
        recorded.recorded.fused(Runs([0], [5], [True]))
    model.fails = False
    assert recorded.batch.num_computed[0] == 0
    found = recorded.recorded.fused(Runs([0], [5], [True]))
    assert found is not None and len(found) == 1
