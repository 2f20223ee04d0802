"""The accelerator as the worker sees it: a queue of work that runs later than it is given, and the few things the host
may do beside it. `CudaDevice` is the real one; tests have one that puts off all work until somebody waits for it.

Invariants for callers: whatever touches the device's memory is given with `launch`, `upload`, `download` or a graph's
`replay`, and runs in that order; a host buffer that was given is not touched before an event after it was waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.errors import DeviceLost


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes. `free`: that no process has taken."""

    total: int
    free: int


class Event(Protocol):
    def wait(self) -> None:
        """Blocks the host until all work given before the event is done. Raises DeviceLost."""
        ...


class Graph(Protocol):
    def replay(self) -> None:
        """Gives the captured work once more, over the same memory."""
        ...


class Device(Protocol):
    where: torch.device

    def host_buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        """[size] on the host, from and to which copies run beside everything else."""
        ...

    def launch(self, work: Callable[[], None]) -> None:
        """`work` calls operations; on a GPU they only enter its queue."""
        ...

    def upload(self, source: Tensor, target: Tensor) -> None:
        """Copies a host buffer to memory of the device."""
        ...

    def download(self, source: Tensor, target: Tensor) -> None:
        """Copies memory of the device to a host buffer; it is there once a later event was waited for."""
        ...

    def event(self) -> Event:
        """Stands behind all work given so far."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Runs `work` once to warm it up, then records it, in a memory pool that all graphs share: only one graph's
        results are valid at a time, unless its work copies them elsewhere."""
        ...

    def memory(self) -> DeviceMemory:
        """Now, with whatever other processes have taken."""
        ...

    def peak(self, work: Callable[[], None]) -> int:
        """Runs `work` to its end: bytes that it took at most beyond what was taken before."""
        ...

    def is_lost(self) -> bool:
        """After an error: whether the device can do no more work for this process."""
        ...


class CudaDevice:
    """Implements Device by PyTorch: everything enters the current stream of the thread that made it."""

    def __init__(self, name: str) -> None:
        self.where = torch.device(name)
        torch.cuda.set_device(self.where)
        # Graphs cannot be captured on the default stream.
        torch.cuda.set_stream(torch.cuda.Stream(self.where))
        self._pool = torch.cuda.graph_pool_handle()

    def host_buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=True)

    def launch(self, work: Callable[[], None]) -> None:
        work()

    def upload(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def download(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def event(self) -> Event:
        event = torch.cuda.Event()
        event.record()
        return _CudaEvent(event)

    def capture(self, work: Callable[[], None]) -> Graph:
        work()
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
        return graph

    def memory(self) -> DeviceMemory:
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.where)
        return DeviceMemory(total, free)

    def peak(self, work: Callable[[], None]) -> int:
        torch.cuda.synchronize(self.where)
        torch.cuda.reset_peak_memory_stats(self.where)
        before = torch.cuda.memory_allocated(self.where)
        work()
        torch.cuda.synchronize(self.where)
        return int(torch.cuda.max_memory_allocated(self.where)) - before

    def is_lost(self) -> bool:
        try:
            torch.cuda.synchronize(self.where)
        except RuntimeError:
            return True
        return False


class _CudaEvent:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self) -> None:
        try:
            self._event.synchronize()
        except RuntimeError as error:
            raise DeviceLost(f"the GPU failed: {error}") from error


def open_device(name: str) -> Device | None:
    """`name` as in ResolvedConfig; None for the CPU, where nothing runs later."""
    return None if name == "cpu" else CudaDevice(name)
