"""Runs plans in the engine's own process, one at a time: the executor for a single device without overlap.

Owned by whoever builds the engine (engine/process.py, client/offline.py). Invariant: the worker, and with it torch,
is imported by `start` and not before; a plan runs in `collect`, so a plan that raises is told apart from one that was
never submitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

from octavo.config.resolve import ResolvedConfig
from octavo.env import limit_openmp_spinning
from octavo.errors import DeviceLost
from octavo.executor.base import StepFailed
from octavo.modelfiles.files import ModelFiles
from octavo.wire.plan import Masks, Plan, Result, WorkerInfo

T = TypeVar("T")


class _Worker(Protocol):
    def start(self) -> WorkerInfo: ...

    def run(self, plan: Plan, masks: Masks | None) -> Result: ...

    def launch(self, plan: Plan, masks: Masks | None) -> None: ...

    def collect(self) -> Result: ...

    @property
    def is_lost(self) -> bool: ...

    def shutdown(self) -> None: ...


class InlineExecutor:
    """Implements executor.base.Executor."""

    depth = 1

    def __init__(self, resolved: ResolvedConfig, files: ModelFiles) -> None:
        self._resolved = resolved
        self._files = files
        self._worker: _Worker | None = None
        self._plans: deque[tuple[Plan, Masks | None]] = deque()

    def start(self) -> WorkerInfo:
        """Loads the model. Raises OctavoError (ModelFileError, OutOfMemory, ...)."""
        limit_openmp_spinning()
        from octavo.worker.worker import Worker

        worker = Worker(self._resolved, self._files)
        info: WorkerInfo = worker.start()
        self._worker = worker
        return info

    def submit(self, plan: Plan, masks: Masks | None = None) -> None:
        self._plans.append((plan, masks))

    def collect(self) -> Result:
        """Runs the oldest plan. Raises StepFailed when the worker raises, whatever it raises, DeviceLost."""
        worker = self._started()
        plan, masks = self._plans.popleft()
        return self._attempt(plan.index, lambda: worker.run(plan, masks))

    def shutdown(self) -> None:
        """Idempotent; frees the model."""
        self._plans.clear()
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.shutdown()

    def _started(self) -> _Worker:
        assert self._worker is not None, "the executor has not been started"
        return self._worker

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
