"""How the runner reaches the place where tensors are computed: at once on the CPU, through a queue on a device. Made by
worker/worker, called by worker/runner.

Of every plan: `begin`, after the batch has taken it; any number of `launch`; `download` at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray
from torch import Tensor

from octavo.kernels.rows import DeviceRows
from octavo.wire.plan import Plan
from octavo.worker import device_rows
from octavo.worker.batch import Batch
from octavo.worker.device import Device
from octavo.worker.staging import Staging

T = TypeVar("T")


class Readback(Protocol):
    def read(self) -> list[Tensor]:
        """Blocks until the tensors are on the host; valid until the plan after the next begins. Raises DeviceLost."""
        ...


class Lane(Protocol):
    def begin(self, plan: Plan) -> None: ...

    def launch(self, work: Callable[[], T]) -> T:
        """See worker.device.Device."""
        ...

    def download(self, tensors: Sequence[Tensor]) -> Readback: ...


class HostLane:
    """The CPU: what is launched is done."""

    def begin(self, plan: Plan) -> None:
        pass

    def launch(self, work: Callable[[], T]) -> T:
        return work()

    def download(self, tensors: Sequence[Tensor]) -> Readback:
        return _Here(list(tensors))


class _Here:
    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors

    def read(self) -> list[Tensor]:
        return self._tensors


class DeviceLane:
    """Keeps the device's rows, `state`, equal to the batch, and the staging that all of a plan's copies go through.
    Implements worker.sampler.Queue too."""

    state: DeviceRows
    """Set when it is made."""

    def __init__(self, device: Device, batch: Batch) -> None:
        self._device, self._batch = device, batch
        self.staging = Staging(device)

    def begin(self, plan: Plan) -> None:
        self.staging.begin()
        if plan.admit or plan.extend:
            self._device.launch(lambda: device_rows.send(plan, self._batch, self.state, self.staging))

    def upload(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        return self.staging.upload(arrays)

    def launch(self, work: Callable[[], T]) -> T:
        return self._device.launch(work)

    def download(self, tensors: Sequence[Tensor]) -> Readback:
        return self.staging.download(tensors)
