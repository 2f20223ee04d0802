"""Where a checkpoint's tensors are wanted, and how the bytes of a file get there: straight into host memory, or through
pinned pieces of it to a device.

Owned by a checkpoint, called by what reads its tensors. Invariant: a piece is written again only when the copy out of
it has run; what `fill` was given is there when it returns, so that anybody may compute with it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

PIECE_BYTES = 4 << 20
"""Small enough to be in the processor's cache while it is copied on, and that the wait for the last one is short."""

Read = Callable[[Tensor, int], None]
"""`read(out, first)` fills `out` ([n] uint8 in host memory) with the bytes from `first` on."""


class Place(Protocol):
    where: torch.device

    def fill(self, read: Read, out: Tensor) -> None:
        """`out`: [n] uint8, contiguous, at `where`; has the bytes from 0 on when this returns."""
        ...


class Event(Protocol):
    def wait(self) -> None: ...


class Uploader(Protocol):
    """What loading needs of a device; worker/device.py has them."""

    where: torch.device

    def host_buffer(self, size: int, dtype: torch.dtype) -> Tensor: ...

    def upload(self, source: Tensor, target: Tensor) -> None: ...

    def event(self) -> Event: ...


class Host:
    """Implements Place for the CPU."""

    where = torch.device("cpu")

    def fill(self, read: Read, out: Tensor) -> None:
        read(out, 0)


class OnDevice:
    """Implements Place by two pinned pieces: while one is copied to the device, the other is read into."""

    def __init__(self, device: Uploader) -> None:
        self.where = device.where
        self._device = device
        self._pieces = [device.host_buffer(PIECE_BYTES, torch.uint8) for _ in range(2)]
        self._copied: list[Event | None] = [None, None]
        """Behind the last copy out of each piece."""
        self._turn = 0

    def fill(self, read: Read, out: Tensor) -> None:
        last = None
        for first in range(0, out.numel(), PIECE_BYTES):
            target = out[first : first + PIECE_BYTES]
            piece = self._free_piece()[: target.numel()]
            read(piece, first)
            self._device.upload(piece, target)
            last = self._copied[self._turn] = self._device.event()
        if last is not None:
            last.wait()

    def _free_piece(self) -> Tensor:
        self._turn = 1 - self._turn
        copied = self._copied[self._turn]
        if copied is not None:
            copied.wait()
        return self._pieces[self._turn]
