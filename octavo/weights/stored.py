"""A checkpoint over mapped files: knows for every tensor where its bytes lie and how they are stored.

Made by weights/checkpoint.py of what weights/gguf.py or weights/safetensors.py found. Owns the mappings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.errors import ModelFileError
from octavo.kernels.layouts import Layout
from octavo.weights.formats.convert import FORMATS, read_dense, read_layout
from octavo.weights.mapping import MappedFile
from octavo.weights.place import Place
from octavo.weights.progress import Progress

_PIECE = 1 << 24
"""Bytes compared at a time."""


class StoredTensor(NamedTuple):
    """`kind`: name of the type, e.g. "Q4_1" or "BF16". `offset` counts from the start of the file."""

    file: MappedFile
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class _Bytes:
    """The bytes of one tensor, brought to where they are wanted: the `Source` of weights/formats."""

    stored: StoredTensor
    place: Place
    tell: Callable[[int], None]
    """Called with the number of bytes that have come."""

    @property
    def device(self) -> torch.device:
        return self.place.where

    def __call__(self, out: Tensor, first: int) -> None:
        file, begin = self.stored.file, self.stored.offset + first
        self.place.fill(lambda piece, at: file.read_into(piece, begin + at), out)
        self.tell(out.numel())


class StoredCheckpoint:
    """Implements weights.checkpoint.Checkpoint. `file` is named in errors about tensors that are not there; `place`,
    `dtype` and `progress` as in open_checkpoint."""

    def __init__(
        self,
        file: str,
        tensors: dict[str, StoredTensor],
        place: Place,
        dtype: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.file, self._tensors = file, tensors
        self._place, self._dtype, self._progress = place, dtype, progress
        self._total = sum(stored.nbytes for stored in tensors.values())
        self._done = 0

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).shape

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        found = self._find(name).shape
        if found != shape:
            raise ModelFileError(self.file, f"tensor {name!r}: shape {list(found)}, the model's is {list(shape)}")

    def same(self, name: str, other: str) -> bool:
        one, two = self._find(name), self._find(other)
        if (one.kind, one.shape) != (two.kind, two.shape):
            return False
        pieces = [torch.empty(min(one.nbytes, _PIECE), dtype=torch.uint8) for _ in range(2)]
        for first in range(0, one.nbytes, _PIECE):
            a, b = (piece[: one.nbytes - first] for piece in pieces)
            one.file.read_into(a, one.offset + first)
            two.file.read_into(b, two.offset + first)
            if not torch.equal(a, b):
                return False
        return True

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        found = self._readable(name)
        return read_dense(self._bytes(found), found.kind, found.shape, dtype)

    def matrix(self, name: str) -> Layout:
        found = self._readable(name)
        if len(found.shape) != 2:
            raise ModelFileError(found.file.name, f"tensor {name!r}: shape {list(found.shape)} is not a matrix")
        return read_layout(self._bytes(found), found.kind, (found.shape[0], found.shape[1]), self._dtype)

    def stack(self, name: str) -> Layout:
        found = self._readable(name)
        if len(found.shape) != 3:
            raise ModelFileError(found.file.name, f"tensor {name!r}: shape {list(found.shape)} is no stack of matrices")
        count, rows, columns = found.shape
        return read_layout(self._bytes(found), found.kind, (count * rows, columns), self._dtype)

    def close(self) -> None:
        for file in {found.file for found in self._tensors.values()}:
            file.close()
        self._tensors = {}

    def __enter__(self) -> StoredCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bytes(self, stored: StoredTensor) -> _Bytes:
        return _Bytes(stored, self._place, self._count)

    def _count(self, num_bytes: int) -> None:
        self._done = min(self._done + num_bytes, self._total)  # a tensor may be read twice
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _find(self, name: str) -> StoredTensor:
        if name not in self._tensors:
            raise ModelFileError(self.file, f"tensor {name!r} is missing")
        return self._tensors[name]

    def _readable(self, name: str) -> StoredTensor:
        found = self._find(name)
        if found.kind not in FORMATS:
            raise ModelFileError(found.file.name, f"tensor {name!r}: type {found.kind} is not supported as weights")
        return found
