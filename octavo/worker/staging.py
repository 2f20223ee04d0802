"""Host memory through which numbers pass between the host and a device without either waiting for the other.

Owned by worker/device_queue.py. A step takes one slot: what it uploads is packed into the slot's buffer, what it
downloads arrives in another one. Invariant: a slot is used again only when all work of the step that had it is done;
with one slot more than there are steps in flight that never waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.worker.device import Device, Event

SLOTS = 3
"""One more than there are plans in flight."""
ALIGNMENT = 16
"""Bytes, of every array: kernels load that many at once."""
SMALLEST = 1 << 12


class _Slot:
    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.event: Event | None = None


class Readback:
    """Tensors on their way to the host."""

    def __init__(self, event: Event, tensors: list[Tensor]) -> None:
        self._event, self._tensors = event, tensors

    def read(self) -> list[Tensor]:
        """Blocks until they are there; valid until the step after the next is given. Raises DeviceLost."""
        self._event.wait()
        return self._tensors


class Staging:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._slots = [_Slot() for _ in range(SLOTS)]
        self._at = 0
        self._free: list[Tensor] = []

    def begin(self) -> None:
        """Another step: takes the slot that was used longest ago."""
        self._at = (self._at + 1) % SLOTS
        slot = self._slots[self._at]
        if slot.buffers:  # a step that failed, or computed nothing, has left no event
            (slot.event or self._device.event()).wait()
        slot.event = None
        self._free, slot.buffers = slot.buffers, []

    def upload(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """By one copy: each as a tensor of its type and shape on the device."""
        starts, size = _places([array.nbytes for array in arrays])
        host = self._buffer(size)
        bytes_of = host.numpy()
        for start, array in zip(starts, arrays, strict=True):
            bytes_of[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        there = torch.empty(size, dtype=torch.uint8, device=self._device.where)
        self._device.upload(host[:size], there)
        return [
            there[start : start + array.nbytes].view(_TYPES[array.dtype.name]).view(array.shape)
            for start, array in zip(starts, arrays, strict=True)
        ]

    def upload_to(self, array: NDArray[Any], target: Tensor) -> None:
        """Into memory that a graph reads."""
        host = self._buffer(array.nbytes)
        host.numpy()[: array.nbytes] = array.view(np.uint8)
        self._device.upload(host[: array.nbytes].view(target.dtype), target)

    def download(self, tensors: Sequence[Tensor]) -> Readback:
        """The last thing of a step."""
        starts, size = _places([tensor.nbytes for tensor in tensors])
        host = self._buffer(size)
        found = []
        for start, tensor in zip(starts, tensors, strict=True):
            target = host[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            self._device.download(tensor, target)
            found.append(target)
        event = self._slots[self._at].event = self._device.event()
        return Readback(event, found)

    def _buffer(self, size: int) -> Tensor:
        """[>= size] uint8 of this step's own. Few are ever made: those of a slot are kept, and double in size."""
        fitting = [buffer for buffer in self._free if buffer.shape[0] >= size]
        if fitting:
            chosen = min(fitting, key=lambda buffer: buffer.shape[0])
            self._free = [buffer for buffer in self._free if buffer is not chosen]
        else:
            chosen = self._device.host_buffer(max(SMALLEST, 1 << (size - 1).bit_length()), torch.uint8)
        self._slots[self._at].buffers.append(chosen)
        return chosen


_TYPES = {
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
}


def _places(sizes: list[int]) -> tuple[list[int], int]:
    """Where arrays of so many bytes begin in one buffer, and its size."""
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += size + -size % ALIGNMENT
    return starts, max(at, ALIGNMENT)
