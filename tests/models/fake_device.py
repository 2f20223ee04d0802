"""A device without a GPU for tests: implements worker.device.Device over CPU tensors, and puts off copies and replays
until an event behind them is waited for, or until operations are launched, which cannot be put off here: they run at
once, behind all that was given before.

What the host may not do beside a GPU shows, as it knows of nothing before it waits for an event behind it: a host
buffer that is rewritten sooner after its upload fails an assertion; one that is read sooner after its download holds
POISON; a tensor of the device that the host writes past the queue, or reads without waiting, holds values of another
time. A `pick` runs some of the work earlier, at random, as a fast GPU does: results must not depend on it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from octavo.errors import DeviceLost
from octavo.worker.device import DeviceMemory

POISON = 0xA5
"""Every byte of a download's target until the host has waited for it."""

_Work = Callable[[], None]
T = TypeVar("T")


class FakeDevice:
    def __init__(self, total: int = 8 << 30, free: int | None = None, pick: random.Random | None = None) -> None:
        """`free`: what others have left of `total`; `pick`: decides how much of the work runs before it is waited
        for, None: none of it."""
        self.where = torch.device("cpu")
        self.total, self.free = total, total if free is None else free
        self.graph_bytes = 0
        """What each graph takes of `free`."""
        self.peak_bytes = 0
        """What `peak` answers."""
        self.num_launches = self.num_replays = self.num_waits = 0
        self._pick = pick
        self._queue: deque[Callable[[], object]] = deque()
        self._given = self._done = self._inside = 0
        self._fail_in: int | None = None
        self._lose_in: int | None = None
        self._lost = False
        self._buffers: dict[int, str] = {}
        self._kept: list[Tensor] = []
        self._arriving: list[Tensor] = []
        """Targets of the downloads of which the host does not know that they have run."""
        self._landing: deque[tuple[int, _Work]] = deque()
        """By the number of the work: what shows once the host has waited for it."""

    # --- what tests ask for

    def fail_launch(self, after: int = 0) -> None:
        """The next launch or replay but `after` raises as PyTorch does when memory runs out; the device goes on."""
        self._fail_in = after

    def lose(self, after: int | None = None) -> None:
        """The device is lost: now, or while it runs the launch or replay after the next `after`."""
        if after is None:
            self._lost = True
        else:
            self._lose_in = after

    @property
    def pending(self) -> int:
        """Pieces of work that have not run."""
        return len(self._queue)

    def synchronize(self) -> None:
        """Runs all work there is. Raises DeviceLost."""
        self._run(self._given)

    # --- Device

    def host_buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        buffer = torch.empty(size, dtype=dtype)
        _poison(buffer)
        self._kept.append(buffer)  # so that no other has its address
        self._buffers[_address(buffer)] = f"host buffer {len(self._buffers)} ([{size}] {dtype})"
        return buffer

    def launch(self, work: Callable[[], T]) -> T:
        self.num_launches += 1
        lost = self._check()
        self._advance(self._given)
        self._inside += 1
        try:
            return work()
        finally:
            self._inside -= 1
            if lost:
                self.lose()

    def upload(self, source: Tensor, target: Tensor) -> None:
        name = self._name(source)
        self._check_idle(source, f"{name} is uploaded while a download fills it")
        given = source.clone()

        def landed() -> None:
            # Bytes are compared: a NaN differs from itself.
            assert torch.equal(_bytes(source), _bytes(given)), f"{name} was rewritten before its upload had run"

        self._give(lambda: target.copy_(given), landed)

    def download(self, source: Tensor, target: Tensor) -> None:
        name = self._name(target)
        self._check_idle(target, f"{name} is given to a download while another one fills it")
        _poison(target)
        self._arriving.append(target)
        found: list[Tensor] = []

        def landed() -> None:
            target.copy_(found.pop())
            self._arriving = [other for other in self._arriving if other is not target]

        self._give(lambda: found.append(source.clone()), landed)

    def event(self) -> FakeEvent:
        return FakeEvent(self, self._given)

    def graph_pool(self) -> object:
        return object()

    def capture(self, work: _Work, pool: object) -> FakeGraph:
        self.synchronize()
        work()
        self.free -= self.graph_bytes
        return FakeGraph(self, work)

    def memory(self) -> DeviceMemory:
        self.synchronize()
        return DeviceMemory(self.total, self.free)

    def peak(self, work: _Work) -> int:
        self.synchronize()
        work()
        self.synchronize()
        return self.peak_bytes

    def is_lost(self) -> bool:
        return self._lost

    # --- the queue

    def _give_work(self, work: _Work) -> None:
        self._give(self.lose if self._check() else work)

    def _check(self) -> bool:
        """Raises what a launch raises now; → whether the device is lost while this one runs."""
        if self._lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self._fail_in is not None:
            self._fail_in -= 1
            if self._fail_in < 0:
                self._fail_in = None
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if self._lose_in is not None:
            self._lose_in -= 1
            if self._lose_in < 0:
                self._lose_in = None
                return True
        return False

    def _give(self, work: Callable[[], object], landed: _Work | None = None) -> None:
        if self._lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self._given += 1
        if landed is not None:
            self._landing.append((self._given, landed))
        self._queue.append(work)
        if self._inside:
            self._advance(self._given)
        elif self._pick is not None:
            self._advance(self._done + self._pick.randint(0, len(self._queue)))

    @torch.inference_mode()
    def _run(self, until: int) -> None:
        """The host waits for the work of this number."""
        self.num_waits += 1
        self._advance(until)
        if self._lost:
            raise DeviceLost("the GPU failed: CUDA error: an illegal memory access was encountered")
        while self._landing and self._landing[0][0] <= until:
            self._landing.popleft()[1]()

    def _advance(self, until: int) -> None:
        while self._done < until and not self._lost:
            self._done += 1
            self._queue.popleft()()

    def _check_idle(self, buffer: Tensor, otherwise: str) -> None:
        for other in self._arriving:
            assert not _overlap(other, buffer), otherwise

    def _name(self, buffer: Tensor) -> str:
        name = self._buffers.get(_address(buffer))
        assert name is not None, f"a copy from or to the host needs a buffer of host_buffer(), not {buffer.shape}"
        return name


@dataclass(frozen=True)
class FakeEvent:
    device: FakeDevice
    behind: int
    """How many pieces of work were given before it."""

    def wait(self) -> None:
        self.device._run(self.behind)


@dataclass(frozen=True)
class FakeGraph:
    """Runs the captured work again, over whatever is in its buffers by then."""

    device: FakeDevice
    work: _Work

    def replay(self) -> None:
        self.device.num_replays += 1
        self.device._give_work(self.work)


def _address(buffer: Tensor) -> int:
    """Of the whole buffer of which this may be a part."""
    return buffer.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _poison(tensor: Tensor) -> None:
    """Not by arithmetic, which not every type has."""
    tensor.copy_(torch.full((tensor.nbytes,), POISON, dtype=torch.uint8).view(tensor.dtype).view(tensor.shape))


def _overlap(one: Tensor, other: Tensor) -> bool:
    first, second = one.data_ptr(), other.data_ptr()
    return first < second + other.nbytes and second < first + one.nbytes
