"""A checkpoint without a file: random weights of whatever shapes the model asks for, made where they are wanted. Tells
how fast a model of true shape is where its weights are not; what it says is noise.

Chosen by the option load_format. Invariant: a tensor depends on seed, name, shape and dtype alone, not on who asked
before.
"""

from __future__ import annotations

import zlib
from types import TracebackType

import torch
from torch import Tensor

from octavo.errors import ModelFileError
from octavo.kernels.layouts import Dense

STD = 0.02
"""A usual size of weights: activations and logits stay finite in every dtype."""


class RandomCheckpoint:
    """Implements weights.checkpoint.Checkpoint. Has no names of its own: `expect` brings a tensor into being."""

    def __init__(self, file: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        """`dtype`: of matrices, as the backend computes them."""
        self.file = file
        self._device, self._dtype, self._seed = device, dtype, seed
        self._shapes: dict[str, tuple[int, ...]] = {}

    def names(self) -> set[str]:
        return set(self._shapes)

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        self._shapes[name] = shape

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise ModelFileError(
                self.file, f"tensor {name!r}: no shape is known of it, and random weights have no file"
            )
        return self._shapes[name]

    def same(self, name: str, other: str) -> bool:
        return name == other

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """Ones for what multiplies activations or frequencies."""
        shape = self.shape(name)
        if len(shape) == 1 and ("norm" in name or "freqs" in name):
            return torch.ones(shape, dtype=dtype, device=self._device)
        return self._noise(name, shape, dtype)

    def matrix(self, name: str) -> Dense:
        shape = self.shape(name)
        if len(shape) != 2:
            raise ModelFileError(self.file, f"tensor {name!r}: shape {list(shape)} is not a matrix")
        return Dense(self._noise(name, shape, self._dtype))

    def stack(self, name: str) -> Dense:
        return Dense(self._noise(name, self.shape(name), self._dtype).flatten(0, -2))

    def _noise(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """In its own type at once: nothing else is in memory beside it."""
        seed = zlib.crc32(f"{self._seed} {name}".encode())  # a CPU's generator takes no more bits
        generator = torch.Generator(self._device).manual_seed(seed)
        return torch.empty(shape, dtype=dtype, device=self._device).normal_(0.0, STD, generator=generator)

    def close(self) -> None:
        self._shapes = {}

    def __enter__(self) -> RandomCheckpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
