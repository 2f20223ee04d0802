"""Nodes of layers whose rows have a state of fixed size: norms of heads, short convolution, gated delta rule.

Values come with the column at which they begin: often parts of one product. Weights and states are addressed while the
program lives; a node keeps them alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.cpu._native import Program
from octavo.kernels.cpu.nodes import F32, Address, Buffer, Value

Part = tuple[Value, int]
"""A value and the column at which what is meant begins."""


def _at(part: Part, at: Address) -> tuple[int, int]:
    """Where a part begins, and the elements from row to row."""
    value, column = part
    return at(value, F32) + 4 * column, value.ld


@dataclass(eq=False)
class HeadNorm:
    x: Part
    heads: int
    weight: Tensor  # [head_dim] f32
    eps: float
    out: Value

    @property
    def reads(self) -> Sequence[Buffer]:
        return ((self.x[0], F32),)

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, F32),)

    def emit(self, program: Program, at: Address) -> None:
        weight, out = self.weight.data_ptr(), _at((self.out, 0), at)
        program.head_norm(*_at(self.x, at), self.heads, self.weight.shape[0], weight, self.eps, *out)


@dataclass(eq=False)
class ShortConv:
    x: Part
    weight: Tensor  # [taps, channels] f32
    state: Tensor  # [slots, taps - 1, channels] f32
    out: Value

    @property
    def reads(self) -> Sequence[Buffer]:
        return ((self.x[0], F32),)

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, F32),)

    def emit(self, program: Program, at: Address) -> None:
        taps, channels = self.weight.shape
        memory = self.weight.data_ptr(), self.state.data_ptr()
        program.short_conv(*_at(self.x, at), channels, taps, *memory, *_at((self.out, 0), at))


@dataclass(eq=False)
class DeltaRule:
    """inputs: q, k, v, g, beta."""

    inputs: tuple[Part, Part, Part, Part, Part]
    k_heads: int
    state: Tensor  # [slots, v_heads, dk, dv] f32
    out: Value

    @property
    def reads(self) -> Sequence[Buffer]:
        return [(value, F32) for value, _ in self.inputs]

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, F32),)

    def emit(self, program: Program, at: Address) -> None:
        q, k, v, g, beta = (_at(part, at) for part in self.inputs)
        _, v_heads, dk, dv = self.state.shape
        memory = self.state.data_ptr(), *_at((self.out, 0), at)
        program.delta_rule(*q, *k, *v, *g, *beta, self.k_heads, v_heads, dk, dv, *memory)
