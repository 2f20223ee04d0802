"""Runs plans on a device in the engine's own process, the next one launched while the one before is computed.

Made by executor/choose.py. Invariants, beside those of the executor that runs one at a time: results and failures come
in the order of the plans; DeviceLost goes through, and ends the engine.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

from octavo.config.resolve import ResolvedConfig
from octavo.executor.base import StepFailed
from octavo.executor.inline import InlineExecutor
from octavo.modelfiles.files import ModelFiles
from octavo.wire.plan import Masks, Plan, Result


class OverlappedExecutor(InlineExecutor):
    """Implements executor.base.Executor. `depth` 1: without overlap, the same tokens."""

    def __init__(self, resolved: ResolvedConfig, files: ModelFiles, depth: int = 2) -> None:
        super().__init__(resolved, files)
        self.depth = depth
        self._flight: deque[tuple[int, StepFailed | None]] = deque()
        """Plans in flight by their index, each with what its launch raised."""

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
        while self._worker is not None and self._flight:
            _, failed = self._flight.popleft()
            if failed is None:
                with suppress(Exception):  # nobody is left whom it could concern
                    self._worker.collect()
        super().shutdown()
