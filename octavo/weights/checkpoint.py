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
from octavo.weights.gguf import open_gguf
from octavo.weights.safetensors import open_safetensors


class Checkpoint(Protocol):
    """Names are those of the file. Every method but close raises ModelFileError that names file and tensor."""

    file: str
    """Name of the .gguf file or the folder, for error messages."""

    def names(self) -> set[str]:
        """All tensors there are."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """In torch order, rows first."""
        ...

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A dense tensor of any rank, computed in f32 and rounded to `dtype`."""
        ...

    def matrix(self, name: str) -> Layout:
        """A matrix [out, in] in the layout that holds it without loss (weights/formats/convert.py)."""
        ...

    def close(self) -> None:
        """Give the files back. What was read stays valid."""
        ...

    def __enter__(self) -> Checkpoint: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_checkpoint(files: ModelFiles) -> Checkpoint:
    """Raises ModelFileError when a file is missing, corrupt or of a kind that is never loaded (.bin, .pt)."""
    return open_gguf(files.path) if files.is_gguf else open_safetensors(files.path)
