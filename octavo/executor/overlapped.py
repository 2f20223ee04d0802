"""Runs plans on a device in the engine's own process, the next one launched while the one before is computed.

Made by executor/choose.py. Invariants: the worker, and with it torch, is imported by `start` and not before; results
and failures come in the order of the plans; what a step raises fails that step alone, unless the device is lost:
DeviceLost goes through, and ends the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from octavo.config.resolve import ResolvedConfig
from octavo.errors import DeviceLost
from octavo.executor.base import StepFailed
from octavo.modelfiles.files import ModelFiles
from octavo.wire.plan import Masks, Plan, Result, WorkerInfo

T = TypeVar("T")


class _Worker(Protocol):
    def start(self) -> WorkerInfo: ...

    def launch(self, plan: Plan, masks: Masks | None) -> None: ...

    def collect(self) -> Result: ...

    @property
    def is_lost(self) -> bool: ...

    def shutdown(self) -> None: ...


class OverlappedExecutor:
    """Implements executor.base.Executor. `depth` 1: without overlap, the same tokens."""

    def __init__(self, resolved: ResolvedConfig, files: ModelFiles, depth: int = 2) -> None:
        self.depth = depth
        self._resolved = resolved
        self._files = files
        self._worker: _Worker | None = None
        self._flight: deque[tuple[int, StepFailed | None]] = deque()
        """Plans in flight by their index, each with what its launch raised."""

    def start(self) -> WorkerInfo:
        """Loads the model. Raises OctavoError (ModelFileError, OutOfMemory, ...)."""
        from octavo.worker.worker import Worker

        worker = Worker(self._resolved, self._files)
        info: WorkerInfo = worker.start()
        self._worker = worker
        return info

    def submit(self, plan: Plan, masks: Masks | None = None) -> None:
        """Blocks for the masks, which need nothing of the plans in flight: a row that they bind is in none of them.
        Raises DeviceLost."""
        worker = self._started()
        failed = None
        try:
            self._attempt(plan.index, lambda: worker.launch(plan, masks))
        except StepFailed as error:
            failed = error
        self._flight.append((plan.index, failed))

    def collect(self) -> Result:
        """Raises StepFailed for whatever the oldest plan raised, DeviceLost."""
        worker = self._started()
        index, failed = self._flight.popleft()
        if failed is not None:
            raise failed
        return self._attempt(index, worker.collect)

    def shutdown(self) -> None:
        """Idempotent; waits for what is in flight and frees the model."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        while self._flight:
            _, failed = self._flight.popleft()
            if failed is None:
                with suppress(Exception):  # nobody is left whom it could concern
                    worker.collect()
        worker.shutdown()

    def _started(self) -> _Worker:
        assert self._worker is not None, "the executor has not been started"
        return self._worker

    def _attempt(self, index: int, work: Callable[[], T]) -> T:
        try:
            return work()
        except (DeviceLost, StepFailed):
            raise
        except Exception as error:
            if self._started().is_lost:
                raise DeviceLost(f"the GPU failed in step {index}: {error}") from error
            raise StepFailed(f"step {index}: {type(error).__name__}: {error}") from error
