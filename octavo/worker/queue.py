"""The one way to where tensors are computed: a queue, of which a CPU does at once what it is given, and a device later.

Of every plan: `begin`, after the batch has taken it; any number of `upload` and `launch`; `download` at the end.
Invariant: what is given runs in the order in which it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.wire.plan import Plan

T = TypeVar("T")
Arrays = Sequence[NDArray[Any]]


class Readback(Protocol):
    def read(self) -> list[Tensor]:
        """Blocks until the tensors are on the host; valid until the plan after the next begins. Raises DeviceLost."""
        ...


class Queue(Protocol):
    def begin(self, plan: Plan) -> None:
        """All that follows is for this plan, which the batch has taken."""
        ...

    def upload(self, arrays: Arrays) -> list[Tensor]:
        """Each (int32, int64 or f32) as a tensor of the device, by one copy. The arrays may be changed afterwards."""
        ...

    def launch(self, work: Callable[[], T]) -> T:
        """`work` calls operations over tensors of the device; what it returns is not to be read on the host."""
        ...

    def download(self, tensors: Sequence[Tensor]) -> Readback: ...


class HostQueue:
    """The CPU: what is launched is done. (For another `device` each upload waits until that is idle: in tests.)"""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)

    def begin(self, plan: Plan) -> None:
        pass

    def upload(self, arrays: Arrays) -> list[Tensor]:
        """The tensors share the arrays' memory; they are read before anybody changes those."""
        return [torch.from_numpy(array).to(self._device) for array in arrays]

    def launch(self, work: Callable[[], T]) -> T:
        return work()

    def download(self, tensors: Sequence[Tensor]) -> Readback:
        return _Here(list(tensors))


class _Here:
    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors

    def read(self) -> list[Tensor]:
        return self._tensors
