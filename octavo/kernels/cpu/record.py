"""Records the model's step as nodes and replays it as one native call. Called by CpuOps.record.

The model runs once over tensors that stand for values: two rows each, so that strides tell how rows lie, told apart by
their storage. What the model reads and writes is thereby known; nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.cpu import _native
from octavo.kernels.cpu.emit import Sizes, Workspace, emit, place
from octavo.kernels.cpu.fuse import improve
from octavo.kernels.cpu.host import Host, View
from octavo.kernels.cpu.nodes import Elementwise, Node, Nodes, Sample, Value
from octavo.kernels.expression import Input, instructions
from octavo.kernels.memory import zero_pages
from octavo.kernels.ops import Compute, Result
from octavo.kernels.recorded import PermanentRows, Runs
from octavo.kernels.step import Step

STAND_IN_ROWS = 2
LOGITS_BYTES = 32 << 20
"""Most f32 logits held at once, but at least those of LEAST_CHUNK samples."""
LEAST_CHUNK = 16


class Recording:
    """A Sink that collects nodes. `step` is what the model is called with; its contents are of no account."""

    def __init__(self, block_size: int, groups: int) -> None:
        self.nodes = Nodes()
        self._values: dict[int, Value] = {}
        self._tensors: list[Tensor] = []  # alive, so that no storage comes twice
        ints = torch.zeros(STAND_IN_ROWS, dtype=torch.int32)
        ids, longs, index = torch.zeros(3, STAND_IN_ROWS, dtype=torch.int64)
        step = Step(ids, longs, longs, ints, ints, ints, ints, index, block_size, 1, 1, ints)
        self.step = replace(step, others=tuple(replace(step, group=group) for group in range(1, groups)))

    def value(self, x: Tensor) -> tuple[Value, int]:
        """What a tensor stands for, and the column at which it begins."""
        value = self._values.get(x.untyped_storage().data_ptr())
        assert value is not None, "a recorded step uses a tensor that no operation of it made"
        assert x.shape[0] == STAND_IN_ROWS and x.stride(0) == value.width and x.storage_offset() < value.width
        return value, int(x.storage_offset())

    def whole(self, x: Tensor) -> Value:
        """Columns of something wider are copied."""
        value, column = self.value(x)
        width = x.shape[1:].numel()
        if width == value.width:
            return value
        assert x[0].is_contiguous(), "an operation takes features that lie one after the other"
        _, copy = self.output(width, value.samples)
        self.add(Elementwise(instructions(Input(0)), [(value, column, width)], copy))
        return copy

    def rows(self, x: Tensor) -> Value:
        return self.whole(x)

    def ids(self, token_ids: Tensor) -> None:
        assert token_ids is self.step.token_ids

    def gather(self, index: Tensor) -> None:
        assert index is self.step.logits_index

    def host(
        self, name: str, compute: Compute, inputs: Sequence[Tensor], results: Sequence[Result], group: int | None
    ) -> list[Tensor]:
        """A node in PyTorch, over a step as a cache group sees it, or over none. Inputs that are not of this step
        (weights, states) are the same in every step."""
        views = [View.of(x, self.value(x)[0]) if self._known(x) else x for x in inputs]
        samples = any(isinstance(view, View) and view.value.samples for view in views)
        tensors, outputs = [], []
        for result in results:
            out, value = self.output(math.prod(result.shape), samples, dtype=result.dtype)
            tensors.append(out.view(-1, *result.shape))
            outputs.append(View.of(tensors[-1], value))
        self.add(Host(name, compute, views, outputs, group))
        return tensors

    def _known(self, x: Tensor) -> bool:
        return x.untyped_storage().data_ptr() in self._values

    def output(
        self, width: int, samples: bool = False, ld: int = 0, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Value]:
        tensor = torch.empty(STAND_IN_ROWS, width, dtype=dtype)
        self._tensors.append(tensor)
        value = self._values[tensor.untyped_storage().data_ptr()] = Value(width, samples, ld=ld)
        return tensor, value

    def add(self, node: Node) -> None:
        self.nodes.nodes.append(node)


class Backend(Protocol):
    """What of CpuOps a recorded step needs."""

    pool: _native.Pool
    isa: str


def chunk_of(vocab: int, max_rows: int) -> int:
    """Samples whose logits are held at once."""
    return min(max_rows, max(LEAST_CHUNK, LOGITS_BYTES // (4 * vocab)))


@dataclass(frozen=True)
class StepRecording:
    """A recorded step: the hidden states of all its tokens, and the logits of its samples."""

    recording: Recording
    hidden: Tensor
    logits: Tensor


class _Replay:
    """A program to be. `kept`: what is read after it, beside the logits."""

    def __init__(self, step: StepRecording, kept: Sequence[Value], sizes: Sizes) -> None:
        nodes = step.recording.nodes
        self._logits = step.recording.value(step.logits)[0]
        self._logits.ld = self._logits.width  # who samples takes them without gaps
        nodes.kept += [self._logits, *kept]
        self._nodes = improve(nodes)  # they keep alive what the program points to
        self._offsets, self.nbytes = place(self._nodes, nodes.kept, sizes)
        self._sizes = sizes

    def emit(self, program: _native.Program, memory: Tensor) -> None:
        self.program = program
        self._workspace = Workspace(memory, self._offsets)
        emit(program, self._nodes, self._workspace, self._sizes.samples)
        self.logits = self._workspace.tensor(self._logits, self._sizes.samples)

    def values(self, value: Value, rows: int) -> Tensor:
        return self._workspace.tensor(value, rows)


class RecordedStep:
    """Implements kernels.recorded.Steps, from two recordings of the step: one computes no more than its samples
    need, the other also the hidden states of all tokens. They share their workspace: one runs at a time."""

    def __init__(
        self, ops: Backend, sampled: StepRecording, whole: StepRecording, rows: PermanentRows, max_tokens: int
    ) -> None:
        logits, _ = sampled.recording.value(sampled.logits)
        sampled.recording.add(Sample(logits, rows.sampling_floats, rows.sampling_ints))
        self.chunk = chunk_of(logits.width, rows.num_tokens.shape[0])
        sizes = Sizes(max_tokens, self.chunk)
        self._rows = rows  # alive: the inputs point to them
        self._inputs = _bound(rows, max_tokens, sampled.recording.step.block_size)
        self._hidden, _ = whole.recording.value(whole.hidden)
        self._step, self._whole = _Replay(sampled, [], sizes), _Replay(whole, [self._hidden], sizes)
        self._begun = self._step
        self.nbytes = max(self._step.nbytes, self._whole.nbytes)
        memory = zero_pages(self.nbytes)
        for replay in (self._step, self._whole):
            replay.emit(_native.Program(ops.pool, self._inputs, ops.isa), memory)
        self.program = self._step.program

    def fused(self, runs: Runs) -> list[int]:
        return self.program.step(runs.rows, runs.counts, runs.samples, True)

    def begin(self, runs: Runs, whole: bool = False) -> None:
        self._begun = self._whole if whole else self._step
        self._begun.program.step(runs.rows, runs.counts, runs.samples, False)

    def sample(self, masks: Sequence[bytes | None]) -> list[int] | None:
        if self._begun is self._whole:
            return None
        return self.program.finish(list(masks) or [None] * self._inputs.samples)

    def hidden(self) -> Tensor:
        assert self._begun is self._whole, "hidden() of a step that was not begun whole"
        return self._whole.values(self._hidden, self._inputs.tokens)

    def logits(self, first: int, count: int) -> Tensor:
        self._begun.program.tail(first, count)
        return self._begun.logits[:count]

    def advance(self, token_ids: Tensor) -> None:
        self._inputs.advance(token_ids.tolist())

    def settled(self, last: list[int]) -> None:
        pass


def _bound(rows: PermanentRows, max_tokens: int, block_size: int) -> _native.Inputs:
    arrays: Sequence[Tensor] = (rows.token_ids, rows.block_tables, rows.num_tokens, rows.num_computed, rows.num_blocks)
    assert all(array.dtype == torch.int32 and array.is_contiguous() for array in arrays)
    groups, most_rows, most_blocks = rows.block_tables.shape
    assert groups == len(rows.windows)
    inputs = _native.Inputs(max_tokens, most_rows, most_rows * most_blocks, block_size)
    inputs.bind(
        rows.token_ids.data_ptr(),
        rows.token_ids.stride(0),
        rows.num_tokens.data_ptr(),
        rows.num_computed.data_ptr(),
        rows.num_blocks.data_ptr(),
        most_rows,
    )
    for tables, window in zip(rows.block_tables, rows.windows, strict=True):
        inputs.bind_group(tables.data_ptr(), tables.stride(0), window or 0)
    return inputs
