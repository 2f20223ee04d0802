"""Operations without a native kernel inside a recorded step: a node that runs PyTorch on views of the workspace,
between two native calls. So a model may use any operation; one without a kernel costs itself, not the recording.

Views are made anew at each call, for the rows of the moment: a step has any number of tokens and samples, and its tail
takes samples a chunk at a time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.kernels.cpu._native import Inputs, Program
from octavo.kernels.cpu.nodes import F32, Address, Buffer, Value
from octavo.kernels.ops import Compute
from octavo.kernels.step import Step


@dataclass(frozen=True)
class View:
    """How a tensor [rows, *shape] lies in the rows of a value."""

    value: Value
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, value: Value) -> View:
        assert x.dtype.itemsize == 4, f"{x.dtype} has no place in a row of four-byte elements"
        return cls(value, tuple(x.shape[1:]), x.stride()[1:], int(x.storage_offset()), x.dtype)

    def over(self, address: int, rows: int) -> Tensor:
        flat = _array(address, rows * self.value.ld, self.dtype)
        return flat.as_strided((rows, *self.shape), (self.value.ld, *self.strides), self.offset)


@dataclass(eq=False)
class Host:
    """`inputs`: views, and tensors that are the same in every step."""

    name: str
    compute: Compute
    inputs: list[View | Tensor]
    outputs: list[View]
    group: int | None
    """Of the step that the operation takes; None: it takes none."""

    @property
    def reads(self) -> Sequence[Buffer]:
        return [(view.value, F32) for view in self.inputs if isinstance(view, View)]

    @property
    def writes(self) -> Sequence[Buffer]:
        return [(view.value, F32) for view in self.outputs]

    def emit(self, program: Program, at: Address) -> None:
        inputs = [(view, at(view.value, F32) if isinstance(view, View) else 0) for view in self.inputs]
        outputs = [(view, at(view.value, F32)) for view in self.outputs]
        of_step = program.inputs

        def call(rows: int, tokens: int) -> None:
            def tensor(view: View | Tensor, address: int) -> Tensor:
                return view if isinstance(view, Tensor) else view.over(address, rows if view.value.samples else tokens)

            with torch.inference_mode():
                step = [] if self.group is None else [step_of(of_step).of(self.group)]
                found = self.compute(*step, *(tensor(*each) for each in inputs))
                for (view, address), result in zip(outputs, found, strict=True):
                    tensor(view, address).copy_(result)

        program.host(self.name, call)


def step_of(inputs: Inputs) -> Step:
    """The step that was gathered last, as tensors over the native arrays: valid until the next is gathered."""
    first, *others = (_step_of(inputs, group) for group in range(inputs.num_groups))
    return replace(first, others=tuple(others))


def _step_of(inputs: Inputs, group: int) -> Step:
    types = (torch.int64,) * 3 + (torch.int32,) * 4 + (torch.int64, torch.int32)
    arrays = [_array(*array, dtype) for array, dtype in zip(inputs.arrays(group), types, strict=True)]
    token_ids, positions, slots, query_start, context_lens, page_start, page_ids, logits_index, rows = arrays
    return Step(
        token_ids,
        positions,
        slots,
        query_start,
        context_lens,
        page_start,
        page_ids,
        logits_index,
        inputs.block_size,
        int(query_start.diff().max()),
        int(context_lens.max()),
        rows,
        (query_start, context_lens, page_start),
        group=group,
    )


def _array(address: int, count: int, dtype: torch.dtype) -> Tensor:
    if count == 0:
        return torch.empty(0, dtype=dtype)
    memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)
