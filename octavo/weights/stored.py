"""A checkpoint over mapped files: knows for every tensor where its bytes lie and how they are stored.

Made by weights/gguf.py and weights/safetensors.py, which differ only in how they find the tensors. Owns the mappings.
"""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.errors import ModelFileError
from octavo.kernels.layouts import Layout
from octavo.weights.formats.convert import FORMATS, read_dense, read_layout
from octavo.weights.mapping import MappedFile


class StoredTensor(NamedTuple):
    """`kind`: name of the type, e.g. "Q4_1" or "BF16". `offset` counts from the start of the file."""

    file: MappedFile
    kind: str
    shape: tuple[int, ...]
    offset: int

    def read(self, out: Tensor, first: int) -> None:
        """The `Source` of weights/formats."""
        self.file.read_into(out, self.offset + first)


class StoredCheckpoint:
    """Implements weights.checkpoint.Checkpoint. `file` is named in errors about tensors that are not there."""

    def __init__(self, file: str, tensors: dict[str, StoredTensor]) -> None:
        self.file, self._tensors = file, tensors

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).shape

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        found = self._readable(name)
        return read_dense(found.read, found.kind, found.shape, dtype)

    def matrix(self, name: str) -> Layout:
        found = self._readable(name)
        if len(found.shape) != 2:
            raise ModelFileError(found.file.name, f"tensor {name!r}: shape {list(found.shape)} is not a matrix")
        return read_layout(found.read, found.kind, (found.shape[0], found.shape[1]))

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

    def _find(self, name: str) -> StoredTensor:
        if name not in self._tensors:
            raise ModelFileError(self.file, f"tensor {name!r} is missing")
        return self._tensors[name]

    def _readable(self, name: str) -> StoredTensor:
        found = self._find(name)
        if found.kind not in FORMATS:
            raise ModelFileError(found.file.name, f"tensor {name!r}: type {found.kind} is not supported as weights")
        return found
