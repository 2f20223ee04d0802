"""The queue of a device (worker/queue.py): everything goes through the device, numbers by the staging buffers that are
used in turn. Made by worker/parts.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from octavo.kernels.rows import DeviceRows
from octavo.wire.plan import Plan
from octavo.worker import device_rows
from octavo.worker.batch import Batch
from octavo.worker.device import Device
from octavo.worker.queue import Arrays, Readback
from octavo.worker.staging import Staging

T = TypeVar("T")


class DeviceQueue:
    """Keeps the device's rows, `state`, equal to the batch, and the staging that all of a plan's copies go through."""

    state: DeviceRows
    """Set when it is made."""

    def __init__(self, device: Device, batch: Batch) -> None:
        self._device, self._batch = device, batch
        self.staging = Staging(device)

    def begin(self, plan: Plan) -> None:
        self.staging.begin()
        if plan.admit or plan.extend:
            self._device.launch(lambda: device_rows.send(plan, self._batch, self.state, self.staging))

    def upload(self, arrays: Arrays) -> list[Tensor]:
        return self.staging.upload(arrays)

    def launch(self, work: Callable[[], T]) -> T:
        return self._device.launch(work)

    def download(self, tensors: Sequence[Tensor]) -> Readback:
        return self.staging.download(tensors)
