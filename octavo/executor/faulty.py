"""An executor that misbehaves on request (OCTAVO_FAULTS), so that recovery can be tested. Used only when that is set.

Built by engine/process.py around the real executor. Steps are counted from 1, over all plans of this process. A step
that is to raise has run before it does: the worker stays consistent, as it does when a kernel fails late.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from octavo.executor.base import Executor, StepFailed
from octavo.wire.plan import Plan, Result, WorkerInfo


class FaultyExecutor:
    """Implements executor.base.Executor. `faults` as parsed by env.faults()."""

    def __init__(self, inner: Executor, faults: dict[str, int]) -> None:
        self.depth = inner.depth
        self._inner = inner
        self._faults = faults
        self._steps = 0

    def start(self) -> WorkerInfo:
        return self._inner.start()

    def submit(self, plan: Plan) -> None:
        self._inner.submit(plan)

    def collect(self) -> Result:
        self._steps += 1
        if delay := self._faults.get("step_delay_ms"):
            time.sleep(delay / 1e3)
        if self._steps == self._faults.get("crash_at_step"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._steps == self._faults.get("hang_at_step"):
            threading.Event().wait()
        result = self._inner.collect()
        if self._steps == self._faults.get("raise_at_step"):
            raise StepFailed(f"step {result.index}: raised on request (raise_at_step={self._steps})")
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()
