"""Runs one operation at once, on tensors: the eager way of the native backend, for tests and for what lies outside of a
recorded step. Slow by comparison: every operation makes a program of its own. Used by backend.py."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.cpu import _native
from octavo.kernels.cpu.emit import Sizes, Workspace, emit
from octavo.kernels.cpu.fuse import improve
from octavo.kernels.cpu.nodes import Node, Nodes, Value, padded
from octavo.kernels.step import Step


class Immediate:
    """A Sink for one operation over `rows` rows of activations; `step` where it looks at positions or pages."""

    def __init__(self, pool: _native.Pool, isa: str, rows: int, step: Step | None = None) -> None:
        self._pool, self._isa, self._rows, self._step = pool, isa, rows, step
        self._index: Tensor | None = None
        self._alive: list[Tensor] = []

    def ids(self, token_ids: Tensor) -> Tensor:
        return token_ids.contiguous()

    def gather(self, index: Tensor) -> None:
        self._index, self._rows = index.contiguous(), index.shape[0]

    def value(self, x: Tensor) -> tuple[Value, int]:
        """A value that is this tensor, [rows, ...], rows any distance apart."""
        assert x.dtype == torch.float32, f"native activations are float32, not {x.dtype}"
        width = x.shape[1:].numel()
        if x.shape[0] and not (x[0].is_contiguous() and (x.shape[0] == 1 or x.stride(0) >= width)):
            x = x.contiguous()
        self._alive.append(x)
        return Value(width, memory=x, ld=max(x.stride(0), width)), 0

    def whole(self, x: Tensor) -> Value:
        return self.value(x)[0]

    def rows(self, x: Tensor) -> Value:
        """Kernels that read row formats expect f32 rows a certain distance apart."""
        if x.stride(0) != padded(x.shape[1]) or not x[:1].is_contiguous():
            x = torch.empty(x.shape[0], padded(x.shape[1]))[:, : x.shape[1]].copy_(x)
        return self.value(x)[0]

    def output(self, width: int, samples: bool = False, ld: int = 0) -> tuple[Tensor, Value]:
        out = torch.empty(self._rows, ld or width)[:, :width]
        return out, Value(width, memory=out, ld=ld or width)

    def add(self, node: Node) -> None:
        if self._rows == 0:
            return
        inputs = self._inputs()
        nodes = Nodes([node], [value for value, _ in node.writes])
        run = improve(nodes)
        program = _native.Program(self._pool, inputs, self._isa)
        workspace = Workspace.make(run, nodes.kept, Sizes(self._rows, self._rows))
        emit(program, run, workspace)
        program.run()  # the workspace is alive until here

    def _inputs(self) -> _native.Inputs:
        step, index = self._step, self._index
        samples = 0 if index is None else index.shape[0]
        inputs = _native.Inputs(self._rows, 1, 1, step.block_size if step else 1)
        at = 0 if index is None else index.data_ptr()
        if step is None:
            inputs.assign(self._rows, 0, samples, 1, 0, 0, 0, 0, 0, 0, 0, at)
            return inputs
        inputs.assign(
            self._rows,
            step.num_rows,
            samples,
            step.block_size,
            step.token_ids.data_ptr(),
            step.positions.data_ptr(),
            step.slots.data_ptr(),
            step.query_start.data_ptr(),
            step.context_lens.data_ptr(),
            step.page_start.data_ptr(),
            step.page_ids.data_ptr(),
            at,
        )
        inputs.assign_row_slots(step.rows.data_ptr())
        return inputs
