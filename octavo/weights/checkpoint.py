"""The tensors of one model by name, wherever they are stored. Models read their weights through this and nothing else.

Invariant: opening checks every header and reads no tensor; a tensor is read when it is asked for, and only it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.layouts import Layout
from octavo.modelfiles.files import ModelFiles
from octavo.weights.gguf import map_gguf
from octavo.weights.place import Host, OnDevice, Uploader
from octavo.weights.progress import Progress
from octavo.weights.safetensors import map_safetensors
from octavo.weights.stored import StoredCheckpoint


class Checkpoint(Protocol):
    """Names are those of the file. Every method but close raises ModelFileError that names file and tensor. What is
    read is on the device that the checkpoint was opened for."""

    file: str
    """Name of the .gguf file or the folder, for error messages."""

    def names(self) -> set[str]:
        """All tensors there are."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """In torch order, rows first."""
        ...

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """The model will read a tensor of this shape; raises ModelFileError where the file's has another."""
        ...

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors are stored as the same bytes of the same type and shape."""
        ...

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A dense tensor of any rank, computed in f32 and rounded to `dtype`."""
        ...

    def matrix(self, name: str) -> Layout:
        """A matrix [out, in] in the layout that holds it without loss (weights/formats/convert.py)."""
        ...

    def stack(self, name: str) -> Layout:
        """The same of several matrices [n, out, in] under one another: [n * out, in]."""
        ...

    def close(self) -> None:
        """Give the files back. What was read stays valid."""
        ...

    def __enter__(self) -> Checkpoint: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_checkpoint(
    files: ModelFiles,
    device: Uploader | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """`device`: where tensors and layouts are wanted, None: in host memory. `dtype`: what the backend computes in;
    dense matrices come rounded to it, as `Ops.prepare` would do with more memory. Raises ModelFileError when a file
    is missing, corrupt or of a kind that is never loaded (.bin, .pt)."""
    tensors = map_gguf(files.path) if files.is_gguf else map_safetensors(files.path)
    place = Host() if device is None else OnDevice(device)
    return StoredCheckpoint(files.path.name, tensors, place, dtype, progress)
