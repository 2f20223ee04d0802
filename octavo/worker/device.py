"""The accelerator as the worker sees it: a queue of work that runs later than it is given, and the few things the host
may do beside it. `CudaDevice` is the real one; tests have one that puts off all work until somebody waits for it.

Invariants for callers: whatever touches the device's memory is given with `launch`, `upload`, `download` or a graph's
`replay`, and runs in that order; a host buffer that was given is not touched before an event after it was waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from octavo.errors import DeviceLost

T = TypeVar("T")


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

    def launch(self, work: Callable[[], T]) -> T:
        """Calls `work`, whose operations enter the queue behind what was given before; the tensors they return are not
        to be read on the host."""
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

    def graph_pool(self) -> object:
        """Memory that several graphs use in turn. It is given back with the last of them."""
        ...

    def capture(self, work: Callable[[], None], pool: object) -> Graph:
        """Runs `work` once to warm it up, then records it. What it makes is valid until another graph of the pool is
        replayed, unless `work` copies it elsewhere."""
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
    """Implements Device by PyTorch: everything enters one stream of its own, whichever thread gives it."""

    def __init__(self, name: str) -> None:
        self.where = torch.device(name)
        torch.cuda.set_device(self.where)
        # Not the default one, on which no graph can be captured.
        self._stream = torch.cuda.Stream(self.where)  # type: ignore[no-untyped-call]
        self._thread = 0
        self._enter()

    def host_buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=True)

    def launch(self, work: Callable[[], T]) -> T:
        self._enter()
        return work()

    def upload(self, source: Tensor, target: Tensor) -> None:
        self._enter()
        target.copy_(source, non_blocking=True)

    def download(self, source: Tensor, target: Tensor) -> None:
        self._enter()
        target.copy_(source, non_blocking=True)

    def event(self) -> Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return _CudaEvent(event)

    def graph_pool(self) -> object:
        return torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], None], pool: object) -> Graph:
        self._enter()
        work()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # type: ignore[arg-type]
        try:
            work()
        finally:
            graph.capture_end()
        return _CudaGraph(graph, self._enter)

    def memory(self) -> DeviceMemory:
        self._stream.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.where)
        return DeviceMemory(total, free)

    def peak(self, work: Callable[[], None]) -> int:
        """What the allocator had to take: with the gaps that allocations of many sizes leave."""
        self._enter()
        self._stream.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.where)
        before = torch.cuda.memory_reserved(self.where)
        work()
        self._stream.synchronize()
        return int(torch.cuda.max_memory_reserved(self.where)) - before

    def is_lost(self) -> bool:
        try:
            torch.cuda.synchronize(self.where)
        except RuntimeError:
            return True
        return False

    def _enter(self) -> None:
        """The current stream is one of each thread; the engine is started in one and may run in another."""
        if self._thread != threading.get_ident():
            torch.cuda.set_stream(self._stream)
            self._thread = threading.get_ident()


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, enter: Callable[[], None]) -> None:
        self._graph, self._enter = graph, enter

    def replay(self) -> None:
        self._enter()
        self._graph.replay()


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
