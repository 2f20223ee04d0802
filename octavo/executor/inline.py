"""Runs plans in the engine's own process: at once on a CPU, and on a device the next one launched while the one before
is computed.

Invariants: the worker, and with it torch, is imported by `start` and not before; results and failures come in the order
of the plans; DeviceLost goes through, and ends the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

from octavo.config.resolve import ResolvedConfig
from octavo.env import limit_openmp_spinning
from octavo.errors import DeviceLost
from octavo.executor.base import StepFailed
from octavo.modelfiles.files import ModelFiles
from octavo.rank import Rank
from octavo.wire.plan import Masks, Plan, Result, WorkerInfo

T = TypeVar("T")


class _Worker(Protocol):
    def start(self) -> WorkerInfo: ...

    def launch(self, plan: Plan) -> None: ...

    def masks(self, masks: Masks) -> None: ...

    def collect(self) -> Result: ...

    @property
    def is_lost(self) -> bool: ...

    def shutdown(self) -> None: ...


class InlineExecutor:
    """Implements executor.base.Executor. `depth` 2 overlaps a host and its device; the tokens are the same."""

    def __init__(self, resolved: ResolvedConfig, files: ModelFiles, depth: int = 1, rank: Rank | None = None) -> None:
        self.depth = depth
        self._rank = rank or Rank.alone(resolved.device)
        self._resolved = resolved
        self._files = files
        self._worker: _Worker | None = None
        self._flight: deque[tuple[int, StepFailed | None]] = deque()
        """Plans in flight by their index, each with what its launch raised."""

    def start(self) -> WorkerInfo:
        """Loads the model. Raises OctavoError (ModelFileError, OutOfMemory, ...)."""
        limit_openmp_spinning()
        from octavo.worker.worker import Worker

        worker = Worker(self._resolved, self._files, rank=self._rank)
        info: WorkerInfo = worker.start()
        self._worker = worker
        return info

    def submit(self, plan: Plan) -> None:
        """Gives the plan's work; a CPU has done it then. Raises DeviceLost."""
        worker = self._started()
        self._flight.append((plan.index, self._failure(plan.index, lambda: worker.launch(plan))))

    def masks(self, masks: Masks) -> None:
        worker = self._started()
        index, failed = self._flight[-1]
        assert index == masks.index, f"masks of plan {masks.index} after plan {index}"
        if failed is None:
            self._flight[-1] = index, self._failure(index, lambda: worker.masks(masks))

    def collect(self) -> Result:
        """Raises StepFailed for whatever the oldest plan raised, DeviceLost."""
        worker = self._started()
        index, failed = self._flight.popleft()
        if failed is not None:
            raise failed
        return self._attempt(index, worker.collect)

    def shutdown(self) -> None:
        """Idempotent; waits for what is in flight and frees the model."""
        while self._worker is not None and self._flight:
            _, failed = self._flight.popleft()
            if failed is None:
                with suppress(Exception):  # nobody is left whom it could concern
                    self._worker.collect()
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.shutdown()

    def _started(self) -> _Worker:
        assert self._worker is not None, "the executor has not been started"
        return self._worker

    def _failure(self, index: int, work: Callable[[], None]) -> StepFailed | None:
        """What the work raised, for `collect`."""
        try:
            self._attempt(index, work)
        except StepFailed as error:
            return error
        return None

    def _attempt(self, index: int, work: Callable[[], T]) -> T:
        """What a step raises fails that step alone, unless the device is lost."""
        try:
            return work()
        except (DeviceLost, StepFailed):
            raise
        except Exception as error:
            if self._started().is_lost:
                raise DeviceLost(f"the GPU failed in step {index}: {error}") from error
            raise StepFailed(f"step {index}: {type(error).__name__}: {error}") from error
