"""Test-only fault injection between engine and executor, switched on by OCTAVO_FAULTS (env.py).

Owned by engine/process.py. Steps are counted from 1. Invariant: without the switch, nothing of this is in the way.
"""

from __future__ import annotations

import logging
import os
import signal
import time

from octavo.errors import DeviceLost
from octavo.executor.base import Executor, StepFailed
from octavo.wire.plan import Masks, Plan, Result, WorkerInfo

logger = logging.getLogger(__name__)


class FaultyExecutor:
    """raise_at_step: that step fails after it ran; hang_at_step: it never ends; crash_at_step: the process dies of a
    segmentation fault; crash_at_token: so does any step that admits this token or samples it; lose_device_at_step: the
    device is lost there; step_delay_ms: every step takes so much longer. Where several plans are in flight, a step is
    met when it is collected, with others behind it; a token that is admitted when it is submitted."""

    def __init__(self, executor: Executor, faults: dict[str, int]) -> None:
        logger.warning("fault injection is on: %s", faults)
        self._executor = executor
        self._faults = faults
        self._step = 0
        self.depth = executor.depth

    def start(self) -> WorkerInfo:
        return self._executor.start()

    def submit(self, plan: Plan) -> None:
        self._poisoned([id for admit in plan.admit for id in admit.token_ids])
        self._executor.submit(plan)

    def masks(self, masks: Masks) -> None:
        self._executor.masks(masks)

    def collect(self) -> Result:
        self._step += 1
        time.sleep(self._faults.get("step_delay_ms", 0) / 1e3)
        if self._step == self._faults.get("hang_at_step"):
            logger.warning("injected: hanging")
            while True:
                time.sleep(1.0)
        if self._step == self._faults.get("crash_at_step"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._step == self._faults.get("lose_device_at_step"):
            raise DeviceLost("injected: the device is lost")
        result = self._executor.collect()
        if self._step == self._faults.get("raise_at_step"):
            raise StepFailed("injected failure")
        self._poisoned(result.token_ids)
        return result

    def _poisoned(self, token_ids: list[int]) -> None:
        if self._faults.get("crash_at_token") in token_ids:
            os.kill(os.getpid(), signal.SIGSEGV)

    def shutdown(self) -> None:
        self._executor.shutdown()
