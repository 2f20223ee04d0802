"""How a recorded step is put together: which operations are fused and when not, and where buffers lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_layouts import int4, int8
from test_reference import randn
from torch import Tensor

from octavo.kernels import registry
from octavo.kernels.cpu.record import Recording
from octavo.kernels.layouts import Dense
from octavo.kernels.registry import Spec

if not next(choice for choice in registry.report(Spec("cpu", "float32")) if choice.name == "cpu").chosen:
    pytest.skip("the native kernels are not built", allow_module_level=True)

from octavo.kernels.cpu import _native
from octavo.kernels.cpu.backend import CpuOps
from octavo.kernels.cpu.emit import Sizes, place
from octavo.kernels.cpu.fuse import improve
from octavo.kernels.cpu.nodes import (
    F32,
    Address,
    Buffer,
    Convert,
    Embed,
    GatherRows,
    Linear,
    Node,
    Nodes,
    Norm,
    SiluMul,
    Value,
)

OPS = CpuOps(torch.bfloat16, "bfloat16", "portable", 1)
INT4, INT8, WIDE = OPS.prepare([int4(0)]), OPS.prepare([int8(0)]), OPS.prepare([Dense(randn(256, 12))])  # 12 ↔ 256
GATES = OPS.prepare([Dense(randn(128, 256))])
ONES = torch.ones(256)
BF16_ROWS, INT_ROWS = 1, 2


def values(*widths: int) -> list[Value]:
    return [Value(width) for width in widths]


def names(nodes: Sequence[Node]) -> list[str]:
    return [type(node).__name__ + ("+" if isinstance(node, Linear) and node.add else "") for node in nodes]


def test_a_product_adds_to_the_residual_itself() -> None:
    x, y, residual, out = values(12, 256, 256, 256)
    step = Nodes([Linear(x, WIDE, None, y), Norm(residual, y, ONES, 1e-5, out)], [out])
    convert, product, norm = improve(step)
    assert isinstance(convert, Convert) and isinstance(product, Linear) and isinstance(norm, Norm)
    assert product.add and product.out is residual and norm.add is None and norm.x is residual


def test_nothing_is_fused_that_somebody_else_reads() -> None:
    for other in ("reader", "kept", "residual"):
        x, y, residual, out, more = values(12, 256, 256, 256, 256)
        between: list[Node] = []
        if other == "reader":
            between = [Norm(y, None, ONES, 1e-5, more)]
        elif other == "residual":
            between = [Norm(residual, None, ONES, 1e-5, more)]
        nodes = [Linear(x, WIDE, None, y), *between, Norm(residual, y, ONES, 1e-5, out)]
        found = improve(Nodes(nodes, [out, more, *([y] if other == "kept" else [])]))
        assert "Linear" in names(found) and "Linear+" not in names(found)


@pytest.mark.parametrize("inner", [64, 48])
def test_gates_are_fused_in_whole_groups(inner: int) -> None:
    x, both, out = values(256, 2 * inner, inner)
    weight = OPS.prepare([Dense(randn(2 * inner, 256))])
    found = improve(Nodes([Linear(x, weight, None, both), SiluMul(both, out)], [out]))
    assert names(found) == (["Convert", "GateUp"] if inner == 64 else ["Convert", "Linear", "SiluMul"])


def test_who_computes_rows_writes_them_as_their_readers_take_them() -> None:
    x, normed, a, b = values(256, 256, 12, 12)
    norm = Norm(x, None, ONES, 1e-5, normed)
    assert names(improve(Nodes([norm, Linear(normed, INT4, None, a), Linear(normed, INT8, None, b)], [a, b]))) == [
        "Norm", "Linear", "Linear",
    ]  # fmt: skip
    assert norm.format == INT_ROWS
    # Readers that do not agree, or one that reads f32: written once as it is, converted for the others.
    for also, kept in (([Linear(normed, GATES, None, b)], []), ([], [normed])):
        norm = Norm(x, None, ONES, 1e-5, normed)
        found = improve(Nodes([norm, Linear(normed, INT4, None, a), *also], [a, b, *kept]))
        assert norm.format == F32 and names(found).count("Convert") == 1 + len(also)


def test_rows_are_converted_again_after_they_changed() -> None:
    x, y, out, a, b = values(256, 256, 256, 12, 12)
    nodes: list[Node] = [Linear(x, INT4, None, a), Norm(x, y, ONES, 1e-5, out), Linear(x, INT4, None, b)]
    assert names(improve(Nodes(nodes, [a, b, out]))) == ["Convert", "Linear", "Norm", "Convert", "Linear"]


def test_after_the_last_attention_only_rows_that_sample_are_computed() -> None:
    _, attended, residual, normed, gated, final, sampled, logits = values(256, 256, 256, 256, 64, 256, 256, 12)
    table = OPS.prepare_table(Dense(randn(5, 256))).parts[0]
    square, down = OPS.prepare([Dense(randn(256, 256))]), OPS.prepare([Dense(randn(256, 64))])
    y, z, both = values(256, 256, 128)
    sampled.samples = logits.samples = True
    nodes: list[Node] = [
        Embed(table, None, residual),
        Embed(table, None, attended),
        Linear(attended, square, None, y),
        Norm(residual, y, ONES, 1e-5, normed),
        Linear(normed, GATES, None, both),
        SiluMul(both, gated),
        Linear(gated, down, None, z),
        Norm(residual, z, ONES, 1e-5, final),
        GatherRows(final, sampled),
        Linear(sampled, INT4, None, logits),
    ]
    found = improve(Nodes(nodes, [logits]))
    assert names(found) == [
        *("Embed", "Embed", "GatherRows", "GatherRows"),
        *("Convert", "Linear+", "Norm", "GateUp", "Linear+", "Norm", "Linear"),
    ]
    assert all(value.samples for node in found[2:] for value, _ in node.writes)
    norm = found[-2]
    assert isinstance(norm, Norm) and norm.format == INT_ROWS


@dataclass(eq=False)
class Use:
    """A node that is only what it reads and writes."""

    reads: list[Buffer] = field(default_factory=list)
    writes: list[Buffer] = field(default_factory=list)

    def emit(self, program: _native.Program, at: Address) -> None: ...


@given(
    widths=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    uses=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11), st.integers(0, 3)), max_size=30),
    kept=st.sets(st.integers(0, 11), max_size=3),
)
def test_buffers_alive_together_never_overlap(
    widths: list[int], uses: list[tuple[int, int, int]], kept: set[int]
) -> None:
    found = [Value(width, samples=i % 3 == 0) for i, width in enumerate(widths)]
    nodes: list[Node] = []
    written: set[Buffer] = set()
    for read, write, form in uses:
        source, target = (found[read % len(found)], F32), (found[write % len(found)], form)
        nodes.append(Use([source] if source in written else [], [target]))
        written.add(target)
    sizes = Sizes(7, 3)
    offsets, nbytes = place(nodes, [found[i % len(found)] for i in kept], sizes)
    first, last = {}, {}
    for i, node in enumerate(nodes):
        for buffer in (*node.reads, *node.writes):
            first.setdefault(buffer, i)
            last[buffer] = len(nodes) if buffer[0] in [found[n % len(found)] for n in kept] else i
    spans = {b: range(offsets[b], offsets[b] + sizes.nbytes(b)) for b in offsets}
    assert set(offsets) == written and all(at % 64 == 0 for at in offsets.values())
    assert nbytes == max((span.stop for span in spans.values()), default=0)
    for a in offsets:
        for b in offsets:
            if a is not b and a != b and first[a] <= last[b] and first[b] <= last[a]:
                assert spans[a].stop <= spans[b].start or spans[b].stop <= spans[a].start


def test_a_model_that_computes_by_itself_is_refused() -> None:
    class Model:
        def __call__(self, step: object, kv: Sequence[Tensor]) -> Tensor:
            return OPS.linear(torch.zeros(2, 256), INT4)

        def logits(self, hidden: Tensor) -> Tensor:
            return hidden

    with pytest.raises(AssertionError, match="no operation of it made"):
        OPS._record(Model(), [], Recording(16, 1))
    assert OPS._recording is None
