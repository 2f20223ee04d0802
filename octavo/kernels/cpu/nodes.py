"""What a step consists of before it becomes native calls: values, and the nodes that compute them.

Made by CpuOps, one node for each operation; improved by fuse.py; placed and emitted by emit.py. A value is
[tokens, width] f32; products read it in a row format of their own (csrc/types.h), which the node that computes the
value may write directly. A `Buffer` is a value in one format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from octavo.kernels.cpu._native import Matrix, Program
from octavo.kernels.cpu.layouts import Packed
from octavo.kernels.expression import FUNCTIONS, Instructions
from octavo.kernels.ops import HeadNorms

F32 = 0
"""csrc/types.h's Format of plain rows."""


def padded(width: int) -> int:
    """Elements from one f32 row to the next where the row is one of Format F32: csrc/types.h's row_bytes."""
    return width + -width % 16


@dataclass(eq=False)
class Value:
    """`memory`: given from outside, rows `ld` elements apart; None: somewhere in the workspace. `samples`: a row for
    each sample of the step in place of each token. `most_rows`: never more than so many, however many tokens."""

    width: int
    samples: bool = False
    memory: Tensor | None = None
    ld: int = 0
    most_rows: int | None = None

    def __post_init__(self) -> None:
        self.ld = self.ld or padded(self.width)


Buffer = tuple[Value, int]
Address = Callable[[Value, int], int]
"""Where a value in a format begins."""


class Node(Protocol):
    """Reads and writes whole buffers."""

    @property
    def reads(self) -> Sequence[Buffer]: ...

    @property
    def writes(self) -> Sequence[Buffer]: ...

    def emit(self, program: Program, at: Address) -> None: ...


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@dataclass(eq=False)
class Embed:
    """`ids` None: the token ids of the step."""

    table: Matrix
    ids: Tensor | None
    out: Value

    @property
    def reads(self) -> Sequence[Buffer]:
        return ()

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, F32),)

    def emit(self, program: Program, at: Address) -> None:
        program.embed(self.table, _pointer(self.ids), at(self.out, F32), self.out.ld)


@dataclass(eq=False)
class Convert:
    x: Value
    format: int

    @property
    def reads(self) -> Sequence[Buffer]:
        return ((self.x, F32),)

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.x, self.format),)

    def emit(self, program: Program, at: Address) -> None:
        program.convert(at(self.x, F32), self.x.ld, self.x.width, at(self.x, self.format), self.format)


@dataclass(eq=False)
class Linear:
    """`add`: to what `out` holds."""

    x: Value
    weight: Packed
    bias: Tensor | None
    out: Value
    add: bool = False

    @property
    def reads(self) -> Sequence[Buffer]:
        found = [(self.x, part.format) for part in self.weight.parts]
        return [*found, (self.out, F32)] if self.add else found

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, F32),)

    def emit(self, program: Program, at: Address) -> None:
        out, bias = at(self.out, F32), _pointer(self.bias)
        for part in self.weight.parts:
            program.linear(at(self.x, part.format), part, bias, out, self.out.ld, self.add)
            out += 4 * part.n
            bias += 4 * part.n if bias else 0


@dataclass(eq=False)
class Norm:
    """`add` is added to x first, in place."""

    x: Value
    add: Value | None
    weight: Tensor
    eps: float
    out: Value
    format: int = F32

    @property
    def reads(self) -> Sequence[Buffer]:
        return ((self.x, F32),) if self.add is None else ((self.x, F32), (self.add, F32))

    @property
    def writes(self) -> Sequence[Buffer]:
        out = (self.out, self.format)
        return (out,) if self.add is None else (out, (self.x, F32))

    def emit(self, program: Program, at: Address) -> None:
        add, add_ld = (0, 0) if self.add is None else (at(self.add, F32), self.add.ld)
        out = at(self.out, self.format)
        x, k = at(self.x, F32), self.x.width
        program.norm(x, self.x.ld, add, add_ld, self.weight.data_ptr(), self.eps, k, out, self.format)


@dataclass(eq=False)
class SiluMul:
    x: Value
    out: Value
    format: int = F32

    @property
    def reads(self) -> Sequence[Buffer]:
        return ((self.x, F32),)

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, self.format),)

    def emit(self, program: Program, at: Address) -> None:
        program.silu_mul(at(self.x, F32), self.x.ld, self.out.width, at(self.out, self.format), self.format)


_FUNCTIONS = {name: number for number, name in enumerate(FUNCTIONS)}
"""csrc/kernels.h's Function."""


@dataclass(eq=False)
class Elementwise:
    """`inputs`: values with the column at which they begin and how many there are; or features that are the same for
    all rows."""

    instructions: Instructions
    inputs: list[tuple[Value, int, int] | Tensor]
    out: Value
    format: int = F32

    @property
    def reads(self) -> Sequence[Buffer]:
        return [(source[0], F32) for source in self.inputs if isinstance(source, tuple)]

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, self.format),)

    def emit(self, program: Program, at: Address) -> None:
        inputs = []
        for source in self.inputs:
            if isinstance(source, tuple):
                value, column, width = source
                inputs.append((at(value, F32) + 4 * column, value.ld, width != self.out.width))
            else:
                inputs.append((source.data_ptr(), 0, source.numel() != self.out.width))
        code = self.instructions
        steps = [(_FUNCTIONS[s.function], s.arguments[0], s.arguments[-1], s.register) for s in code.steps]
        out = at(self.out, self.format)
        program.elementwise(inputs, list(code.scalars), steps, code.result, self.out.width, out, self.format)


@dataclass(eq=False)
class GateUp:
    """SiluMul of a Linear with one matrix."""

    x: Value
    weight: Matrix
    bias: Tensor | None
    out: Value
    format: int = F32

    @property
    def reads(self) -> Sequence[Buffer]:
        return ((self.x, self.weight.format),)

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, self.format),)

    def emit(self, program: Program, at: Address) -> None:
        x, out = at(self.x, self.weight.format), at(self.out, self.format)
        program.gate_up(x, self.weight, _pointer(self.bias), out, self.format)


@dataclass(frozen=True)
class Pages:
    """One layer's KV pages, in the blocks of a cache group."""

    memory: Tensor
    kind: int
    block_size: int
    kv_heads: int
    head_dim: int
    group: int

    def arguments(self) -> tuple[int, int, int, int, int, int]:
        blocks = self.memory.shape[1]
        return self.memory.data_ptr(), self.kind, blocks, self.block_size, self.kv_heads, self.head_dim


@dataclass(eq=False)
class Rope:
    """q, k and v are values with the column at which they begin: often parts of one product."""

    q: tuple[Value, int]
    k: tuple[Value, int]
    v: tuple[Value, int]
    heads: int
    cos_sin: Tensor
    norms: HeadNorms | None
    pages: Pages
    out: Value

    @property
    def reads(self) -> Sequence[Buffer]:
        return [(value, F32) for value, _ in (self.q, self.k, self.v)]

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, F32),)

    def emit(self, program: Program, at: Address) -> None:
        q, k, v = (at(value, F32) + 4 * column for value, column in (self.q, self.k, self.v))
        table = self.cos_sin.data_ptr(), self.cos_sin.shape[1]
        norms = self.norms
        q_norm, k_norm, eps = (norms.q.data_ptr(), norms.k.data_ptr(), norms.eps) if norms else (0, 0, 0.0)
        out, out_ld = at(self.out, F32), self.out.ld
        q_ld, k_ld, v_ld = self.q[0].ld, self.k[0].ld, self.v[0].ld
        sources = q, q_ld, k, k_ld, v, v_ld
        pages = self.pages.arguments()
        program.use_group(self.pages.group)
        program.rope_cache(*sources, self.heads, *table, q_norm, k_norm, eps, *pages, out, out_ld)


@dataclass(eq=False)
class Attend:
    q: Value
    heads: int
    pages: Pages
    scale: float
    window: int | None
    soft_cap: float | None
    out: Value

    @property
    def reads(self) -> Sequence[Buffer]:
        return ((self.q, F32),)

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, F32),)

    def emit(self, program: Program, at: Address) -> None:
        q, out, limits = at(self.q, F32), at(self.out, F32), (self.window or 0, self.soft_cap or 0.0)
        program.use_group(self.pages.group)
        program.attention(q, self.q.ld, self.heads, *self.pages.arguments(), self.scale, *limits, out, self.out.ld)


@dataclass(eq=False)
class GatherRows:
    """The tokens whose logits are wanted. Everything after it in a step is over samples."""

    x: Value
    out: Value

    @property
    def reads(self) -> Sequence[Buffer]:
        return ((self.x, F32),)

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, F32),)

    def emit(self, program: Program, at: Address) -> None:
        program.gather_rows(at(self.x, F32), self.x.ld, self.x.width, at(self.out, F32), self.out.ld)


@dataclass(eq=False)
class Sample:
    """By the permanent settings of the sampler, [rows, n] each."""

    logits: Value
    floats: Tensor
    ints: Tensor

    @property
    def reads(self) -> Sequence[Buffer]:
        return ((self.logits, F32),)

    @property
    def writes(self) -> Sequence[Buffer]:
        return ()

    def emit(self, program: Program, at: Address) -> None:
        settings = self.floats.data_ptr(), self.floats.stride(0), self.ints.data_ptr(), self.ints.stride(0)
        program.sample(at(self.logits, F32), self.logits.width, *settings)


@dataclass
class Nodes:
    """In order. `kept`: values that are read in f32 after the step."""

    nodes: list[Node] = field(default_factory=list)
    kept: list[Value] = field(default_factory=list)


class Sink(Protocol):
    """What becomes of operations: collected (record.py) or run at once (immediate.py)."""

    def value(self, x: Tensor) -> tuple[Value, int]:
        """What an argument [rows, ...] stands for, and the column at which it begins."""
        ...

    def whole(self, x: Tensor) -> Value:
        """A value that is this argument and nothing beside it."""
        ...

    def rows(self, x: Tensor) -> Value:
        """The same, in the form in which products read f32 rows."""
        ...

    def ids(self, token_ids: Tensor) -> Tensor | None:
        """None: those of the step."""
        ...

    def output(self, width: int, samples: bool = False, ld: int = 0) -> tuple[Tensor, Value]:
        """A new result [rows, width], `ld` elements from row to row when that matters."""
        ...

    def gather(self, index: Tensor) -> None:
        """The rows that a GatherRows will take."""
        ...

    def add(self, node: Node) -> None: ...
