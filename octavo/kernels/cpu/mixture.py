"""Nodes of a mixture of experts: routing, and the experts' products over the tokens that chose them
(csrc/operations_experts.cpp). What lies between the products has a place in the workspace, for a bounded number of
tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.kernels.cpu import _native
from octavo.kernels.cpu._native import Matrix, Program
from octavo.kernels.cpu.layouts import Packed
from octavo.kernels.cpu.nodes import F32, Address, Buffer, Value, padded
from octavo.kernels.layouts import EachPrepared

MOST_TOKENS = 512
"""That go through the experts together: enough that each expert's matrices are read for many at once."""
_FORMATS = 4


@dataclass(eq=False)
class Route:
    """`ids` holds int32."""

    logits: Value
    k: int
    renormalize: bool
    weights: Value
    ids: Value

    @property
    def reads(self) -> Sequence[Buffer]:
        return ((self.logits, F32),)

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.weights, F32), (self.ids, F32))

    def emit(self, program: Program, at: Address) -> None:
        logits, weights, ids = ((at(value, F32), value.ld) for value in (self.logits, self.weights, self.ids))
        program.route(*logits, self.logits.width, self.k, self.renormalize, *weights, *ids)


class PackedExperts(EachPrepared[Packed]):
    """Those of this backend."""

    @property
    def formats(self) -> list[int]:
        """In which rows are taken."""
        return sorted({part.format for matrix in self.matrices for part in matrix.parts})

    @property
    def parts(self) -> list[list[Matrix]]:
        return [list(matrix.parts) for matrix in self.matrices]


@dataclass(eq=False)
class Experts:
    x: Value
    weights: Value
    ids: Value
    gate_up: PackedExperts
    down: PackedExperts
    out: Value

    def __post_init__(self) -> None:
        inner, k = self.down.shape[2], self.weights.width
        rows = sum(_native.row_bytes(form, self.x.width) for form in self.gate_up.formats)
        inner_rows = max(_native.row_bytes(form, inner) for form in self.down.formats)
        a_choice = rows + 4 * padded(2 * inner) + inner_rows + 4 * self.out.ld
        self.scratch = Value(k * a_choice // 4, most_rows=MOST_TOKENS)

    @property
    def reads(self) -> Sequence[Buffer]:
        return [*((self.x, form) for form in self.gate_up.formats), (self.weights, F32), (self.ids, F32)]

    @property
    def writes(self) -> Sequence[Buffer]:
        return ((self.out, F32),)

    @property
    def passing(self) -> Sequence[Buffer]:
        """Written and read while it runs."""
        return ((self.scratch, F32),)

    def emit(self, program: Program, at: Address) -> None:
        formats = self.gate_up.formats
        x = [at(self.x, form) if form in formats else 0 for form in range(_FORMATS)]
        weights, ids = ((at(value, F32), value.ld) for value in (self.weights, self.ids))
        shape = self.weights.width, self.x.width, self.down.shape[2]
        matrices = self.gate_up.parts, self.down.parts
        scratch, out = at(self.scratch, F32), at(self.out, F32)
        program.experts(x, weights, ids, *shape, *matrices, scratch, MOST_TOKENS, out, self.out.ld)
