"""How the sampler's work reaches the device. Made by the worker, called by the sampler alone.

Invariant: what is given runs in the order in which it is given, perhaps much later; nothing comes back this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = Sequence[NDArray[Any]]


class Queue(Protocol):
    def upload(self, arrays: Arrays) -> list[Tensor]:
        """Each (int32, int64 or f32) as a tensor of the device, by one copy. The arrays may be changed afterwards."""
        ...

    def launch(self, work: Callable[[], None]) -> None:
        """`work` calls operations over tensors of the device."""
        ...


class AtOnce:
    """Where nothing runs later: on a CPU. (Elsewhere each upload waits until the device is idle.)"""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def upload(self, arrays: Arrays) -> list[Tensor]:
        """The tensors share the arrays' memory; they are read before anybody changes those."""
        return [torch.from_numpy(array).to(self._device) for array in arrays]

    def launch(self, work: Callable[[], None]) -> None:
        work()
