"""Makes a recorded step cheaper without changing what it computes: fewer passes over memory, no rows written in a form
that nobody reads. Called by emit.py with the nodes of one step, in order.

- A product that is only added to the residual adds to it itself.
- silu_mul of a product is one operation.
- Of the last layers' rows only those are computed whose logits are wanted.
- Who computes a value writes it in the format its readers take, when they agree on one.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.kernels.cpu.mixture import Experts, Route
from octavo.kernels.cpu.nodes import (
    F32,
    Buffer,
    Convert,
    Elementwise,
    GateUp,
    GatherRows,
    Linear,
    Node,
    Nodes,
    Norm,
    SiluMul,
    Value,
)

GATE_UP_MULTIPLE = 64
"""Rows of a matrix that the fused kernel takes: halves of whole groups of 32."""


BY_ROW = (Linear, Norm, SiluMul, Elementwise, GateUp, Route, Experts)
"""Nodes of which each row is a function of the same row of what they read."""

WRITE_ROWS = (Norm, SiluMul, Elementwise, GateUp)
"""Nodes that write their result in any format."""


def improve(step: Nodes) -> list[Node]:
    """The nodes to run."""
    _add_in_products(step)
    _fuse_gates(step)
    _gather_early(step)
    _choose_formats(step)
    return _insert_conversions(step.nodes)


class _Readers:
    def __init__(self, step: Nodes) -> None:
        self._found: dict[Value, list[Node]] = {}
        for node in step.nodes:
            for value in dict.fromkeys(value for value, _ in node.reads):
                self._found.setdefault(value, []).append(node)
        self._kept = step.kept

    def only(self, value: Value) -> Node | None:
        """The node that reads the value, if it is the only one to do so."""
        found = self._found.get(value, [])
        return found[0] if len(found) == 1 and value not in self._kept else None


def _add_in_products(step: Nodes) -> None:
    """y = linear(x), then norm of residual + y → residual += linear(x), then norm of residual. Only where nothing
    between the two touches the residual."""
    readers = _Readers(step)
    for i, node in enumerate(step.nodes):
        if not isinstance(node, Linear) or node.add:
            continue
        norm = readers.only(node.out)
        if isinstance(norm, Norm) and norm.add is node.out and norm.x is not node.out:
            between = step.nodes[i + 1 : step.nodes.index(norm)]
            if not any(value is norm.x for other in between for value, _ in (*other.reads, *other.writes)):
                node.out, node.add, norm.add = norm.x, True, None


def _fuse_gates(step: Nodes) -> None:
    readers = _Readers(step)
    products: set[Node] = set()
    fused: dict[Node, Node] = {}
    for node in step.nodes:
        if not isinstance(node, Linear) or node.add or len(node.weight.parts) != 1:
            continue
        silu = readers.only(node.out)
        if isinstance(silu, SiluMul) and node.out.width % GATE_UP_MULTIPLE == 0:
            products.add(node)
            fused[silu] = GateUp(node.x, node.weight.parts[0], node.bias, silu.out)
    step.nodes = [fused.get(node, node) for node in step.nodes if node not in products]


def _gather_early(step: Nodes) -> None:
    """What comes before GatherRows and computes row by row what nobody else reads is done after it."""
    at, gather = next(((i, n) for i, n in enumerate(step.nodes) if isinstance(n, GatherRows)), (0, None))
    if gather is None:
        return
    early, moved = _split(step.nodes[:at], gather.x, step.kept)
    inside: set[Value] = set()
    sampled: dict[Value, Value] = {}
    for node in moved:
        for value, _ in node.reads:
            if value not in inside and value not in sampled:
                sampled[value] = Value(value.width, samples=True)
        inside |= _values(node.writes)
        _replace(node, sampled)
    for value in inside - set(sampled):
        value.samples = True
    if moved:
        gathers = [GatherRows(value, rows) for value, rows in sampled.items()]
        last = sampled.get(gather.x, gather.x)
        for node in step.nodes[at + 1 :]:
            _replace(node, {gather.out: last})
        step.nodes = [*early, *gathers, *moved, *step.nodes[at + 1 :]]


def _split(body: Sequence[Node], wanted: Value, kept: Sequence[Value]) -> tuple[list[Node], list[Node]]:
    """The nodes that all tokens need, and those that only `wanted` needs, row by row."""
    early: list[Node] = []
    moved: list[Node] = []
    late, changed = {wanted}, set[Value]()  # read later by moved nodes alone; written later by others
    for node in reversed(body):
        reads, writes = _values(node.reads), _values(node.writes)
        by_row = isinstance(node, BY_ROW)
        if by_row and writes <= late and not reads & changed and not writes & set(kept):
            moved.insert(0, node)
            late |= reads
        else:
            early.insert(0, node)
            late -= reads
            changed |= writes
    return early, moved


def _values(buffers: Sequence[Buffer]) -> set[Value]:
    return {value for value, _ in buffers}


def _replace(node: Node, by: dict[Value, Value]) -> None:
    def replaced(found: object) -> object:
        if isinstance(found, Value):
            return by.get(found, found)
        if isinstance(found, (tuple, list)):
            return type(found)(map(replaced, found))
        return found

    for name, found in vars(node).items():
        setattr(node, name, replaced(found))


def _choose_formats(step: Nodes) -> None:
    wanted: dict[Value, set[int]] = {value: {F32} for value in step.kept}
    for node in step.nodes:
        for value, form in node.reads:
            wanted.setdefault(value, set()).add(form)
    for node in step.nodes:
        if isinstance(node, WRITE_ROWS) and len(forms := wanted.get(node.out, set())) == 1:
            (node.format,) = forms


def _insert_conversions(nodes: Sequence[Node]) -> list[Node]:
    """A Convert before each node that reads a value in a format in which it was not written since it last changed."""
    out: list[Node] = []
    there: set[Buffer] = set()
    for node in nodes:
        for value, form in dict.fromkeys(node.reads):
            if form != F32 and (value, form) not in there:
                out.append(Convert(value, form))
                there.add((value, form))
        out.append(node)
        written = set(node.writes)
        changed = {value for value, _ in written}
        there = {buffer for buffer in there if buffer[0] not in changed} | written
    return out
