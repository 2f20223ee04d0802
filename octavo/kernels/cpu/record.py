"""Records the model's step as nodes and replays it as one native call. Called by CpuOps.record.

The model runs once over tensors that stand for values: two rows each, so that strides tell how rows lie, told apart by
their storage. What the model reads and writes is thereby known; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.cpu import _native
from octavo.kernels.cpu.emit import Sizes, Workspace, emit
from octavo.kernels.cpu.fuse import improve
from octavo.kernels.cpu.nodes import Node, Nodes, Sample, Value
from octavo.kernels.recorded import Masks, PermanentRows
from octavo.kernels.step import Step

STAND_IN_ROWS = 2
LOGITS_BYTES = 32 << 20
"""Most f32 logits held at once, but at least those of LEAST_CHUNK samples."""
LEAST_CHUNK = 16


class Recording:
    """A Sink that collects nodes. `step` is what the model is called with; its contents are of no account."""

    def __init__(self, block_size: int) -> None:
        self.nodes = Nodes()
        self._values: dict[int, Value] = {}
        self._tensors: list[Tensor] = []  # alive, so that no storage comes twice
        ints = torch.zeros(STAND_IN_ROWS, dtype=torch.int32)
        ids, longs, index = torch.zeros(3, STAND_IN_ROWS, dtype=torch.int64)
        self.step = Step(ids, longs, longs, ints, ints, ints, ints, index, block_size, 1, 1)

    def value(self, x: Tensor) -> tuple[Value, int]:
        """What a tensor stands for, and the column at which it begins."""
        value = self._values.get(x.untyped_storage().data_ptr())
        assert value is not None, "a recorded step uses a tensor that no operation of it made"
        assert x.shape[0] == STAND_IN_ROWS and x.stride(0) == value.width and x.storage_offset() < value.width
        return value, int(x.storage_offset())

    def rows(self, x: Tensor) -> Value:
        value, column = self.value(x)
        assert column == 0 and x.shape[1] == value.width
        return value

    def ids(self, token_ids: Tensor) -> None:
        assert token_ids is self.step.token_ids

    def gather(self, index: Tensor) -> None:
        assert index is self.step.logits_index

    def output(self, width: int, samples: bool = False, ld: int = 0) -> tuple[Tensor, Value]:
        tensor = torch.empty(STAND_IN_ROWS, width)
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


class _Replay:
    """A program and its workspace. `result`: what is read after it, [rows, width] f32."""

    def __init__(
        self, pool: _native.Pool, isa: str, inputs: _native.Inputs, recording: Recording, result: Tensor, sizes: Sizes
    ) -> None:
        value, _ = recording.value(result)
        recording.nodes.kept.append(value)
        self._nodes = improve(recording.nodes)  # they keep alive what the program points to
        workspace = Workspace.make(self._nodes, recording.nodes.kept, sizes)
        self.nbytes = workspace.memory.nbytes
        self.result = workspace.tensor(value, sizes.samples if value.samples else sizes.tokens)
        self.program = _native.Program(pool, inputs, isa)
        emit(self.program, self._nodes, workspace, sizes.samples)


class RecordedStep:
    """Implements kernels.recorded.Recorded, from recordings that end with the logits and with the hidden states of all
    tokens."""

    def __init__(
        self, ops: Backend, sampled: tuple[Recording, Tensor], scored: tuple[Recording, Tensor], rows: PermanentRows,
        max_tokens: int,
    ) -> None:  # fmt: skip
        recording, logits = sampled
        value, _ = recording.value(logits)
        recording.add(Sample(value, rows.sampling_floats, rows.sampling_ints))
        self.chunk = chunk_of(value.width, rows.num_tokens.shape[0])
        sizes = Sizes(max_tokens, self.chunk)
        self._rows = rows  # alive: the inputs point to them
        self._inputs = _bound(rows, max_tokens, recording.step.block_size)
        self._step = _Replay(ops.pool, ops.isa, self._inputs, *sampled, sizes)
        self._score = _Replay(ops.pool, ops.isa, self._inputs, *scored, sizes)
        self.program = self._step.program
        self.nbytes = self._step.nbytes + self._score.nbytes

    def step(self, rows: list[int], counts: list[int], samples: list[bool], masks: Masks | None = None) -> list[int]:
        if masks is None:
            return self.program.step(rows, counts, samples, True)
        self.program.step(rows, counts, samples, False)
        return self.program.finish(masks())

    def begin(self, rows: list[int], counts: list[int], samples: list[bool]) -> None:
        self.program.step(rows, counts, samples, False)

    def hidden(self) -> Tensor:
        """Computes the step once more: `begin` does not bring all tokens to the end."""
        self._score.program.run()
        return self._score.result[: self._inputs.tokens]

    def logits(self, first: int, count: int) -> Tensor:
        self.program.tail(first, count)
        return self._step.result[:count]

    def advance(self, token_ids: list[int]) -> None:
        self._inputs.advance(token_ids)


def _bound(rows: PermanentRows, max_tokens: int, block_size: int) -> _native.Inputs:
    arrays: Sequence[Tensor] = (rows.token_ids, rows.block_tables, rows.num_tokens, rows.num_computed, rows.num_blocks)
    assert all(array.dtype == torch.int32 and array.is_contiguous() for array in arrays)
    inputs = _native.Inputs(max_tokens, rows.num_tokens.shape[0], rows.block_tables.numel(), block_size)
    inputs.bind(
        rows.token_ids.data_ptr(),
        rows.token_ids.stride(0),
        rows.block_tables.data_ptr(),
        rows.block_tables.stride(0),
        rows.num_tokens.data_ptr(),
        rows.num_computed.data_ptr(),
        rows.num_blocks.data_ptr(),
        rows.num_tokens.shape[0],
    )
    return inputs
