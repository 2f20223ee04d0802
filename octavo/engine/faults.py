"""Test-only fault injection between engine and executor, switched on by OCTAVO_FAULTS (env.py).

Owned by engine/process.py. Steps are counted from 1. Invariant: without the switch, nothing of this is in the way.
"""

from __future__ import annotations

import logging
import os
import signal
import time

from octavo.executor.base import Executor, StepFailed
from octavo.wire.plan import Masks, Plan, Result, WorkerInfo

logger = logging.getLogger(__name__)


class FaultyExecutor:
    """raise_at_step: that step fails after it ran; hang_at_step: it never ends; crash_at_step: the process is killed;
    step_delay_ms: every step takes so much longer."""

    def __init__(self, executor: Executor, faults: dict[str, int]) -> None:
        logger.warning("fault injection is on: %s", faults)
        self._executor = executor
        self._faults = faults
        self._step = 0
        self.depth = executor.depth

    def start(self) -> WorkerInfo:
        return self._executor.start()

    def submit(self, plan: Plan, masks: Masks | None = None) -> None:
        self._executor.submit(plan, masks)

    def collect(self) -> Result:
        self._step += 1
        time.sleep(self._faults.get("step_delay_ms", 0) / 1e3)
        if self._step == self._faults.get("hang_at_step"):
            logger.warning("injected: hanging")
            while True:
                time.sleep(1.0)
        if self._step == self._faults.get("crash_at_step"):
            os.kill(os.getpid(), signal.SIGKILL)
        result = self._executor.collect()
        if self._step == self._faults.get("raise_at_step"):
            raise StepFailed("injected failure")
        return result

    def shutdown(self) -> None:
        self._executor.shutdown()
