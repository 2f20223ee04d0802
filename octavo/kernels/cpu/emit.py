"""From nodes to a native program: gives every buffer a place in one workspace, then makes the calls. Called by
record.py for a whole step and by immediate.py for single operations.

Invariant: two buffers share memory only where the last use of one comes before the first of the other. What is read
after the step, and what the tail reads (it runs several times), is never overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.cpu import _native
from octavo.kernels.cpu.mixture import Experts
from octavo.kernels.cpu.nodes import F32, Buffer, GatherRows, Node, Value
from octavo.kernels.memory import zero_pages

ALIGNMENT = 64


@dataclass(frozen=True)
class Sizes:
    """Most rows of a value over tokens, and of one over samples."""

    tokens: int
    samples: int

    def nbytes(self, buffer: Buffer) -> int:
        value, form = buffer
        row = 4 * value.ld if form == F32 else _native.row_bytes(form, value.width)
        rows = self.samples if value.samples else self.tokens
        size = row * (rows if value.most_rows is None else min(rows, value.most_rows))
        return size + -size % ALIGNMENT


@dataclass
class _Life:
    first: int
    last: int


def _lives(nodes: Sequence[Node], kept: Sequence[Value]) -> dict[Buffer, _Life]:
    """Of the buffers in the workspace, in the order in which they begin."""
    lives: dict[Buffer, _Life] = {}
    tail = next((i for i, node in enumerate(nodes) if isinstance(node, GatherRows)), len(nodes))
    for i, node in enumerate(nodes):
        passing = node.passing if isinstance(node, Experts) else ()
        for buffer in (*node.reads, *node.writes, *passing):
            if buffer[0].memory is None or buffer[1] != F32:
                life = lives.setdefault(buffer, _Life(i, i))
                life.last = len(nodes) if life.first < tail <= i else i
    for buffer, life in lives.items():
        if buffer[0] in kept:
            life.last = len(nodes)
    return lives


def place(nodes: Sequence[Node], kept: Sequence[Value], sizes: Sizes) -> tuple[dict[Buffer, int], int]:
    """Offsets in the workspace, and its bytes: each buffer goes to the lowest gap between those that are alive."""
    offsets: dict[Buffer, int] = {}
    alive: list[tuple[int, int, int]] = []  # offset, end, last use
    nbytes = 0
    for buffer, life in _lives(nodes, kept).items():
        alive = sorted(entry for entry in alive if entry[2] >= life.first)
        size, offset = sizes.nbytes(buffer), 0
        for start, end, _ in alive:
            if offset + size <= start:
                break
            offset = max(offset, end)
        alive.append((offset, offset + size, life.last))
        offsets[buffer] = offset
        nbytes = max(nbytes, offset + size)
    return offsets, nbytes


@dataclass(frozen=True)
class Workspace:
    """Memory of buffers."""

    memory: Tensor
    offsets: dict[Buffer, int]

    @classmethod
    def make(cls, nodes: Sequence[Node], kept: Sequence[Value], sizes: Sizes) -> Workspace:
        offsets, nbytes = place(nodes, kept, sizes)
        return cls(zero_pages(nbytes), offsets)

    def address(self, value: Value, form: int) -> int:
        if value.memory is not None and form == F32:
            return value.memory.data_ptr()
        return self.memory.data_ptr() + self.offsets[value, form]

    def tensor(self, value: Value, rows: int) -> Tensor:
        """[rows, width] f32, a view."""
        start = self.offsets[value, F32]
        data = self.memory[start : start + 4 * rows * value.ld].view(torch.float32)
        return data.view(rows, value.ld)[:, : value.width]


def emit(program: _native.Program, nodes: Sequence[Node], workspace: Workspace, chunk: int | None = None) -> None:
    """`chunk`: samples that the tail, from GatherRows on, takes at a time; None: there is no tail."""
    for node in nodes:
        if chunk is not None and isinstance(node, GatherRows):
            program.begin_tail(chunk)
        node.emit(program, workspace.address)
