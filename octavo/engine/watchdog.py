"""Ends an engine whose step hangs, with all stacks in the log. Owned by engine/process.py, which wraps its executor.

A thread looks at how long the oldest plan has been in flight. A step that never gives back the interpreter lock would
stop that thread too, so it also keeps a timer of faulthandler armed, which needs no lock. Invariant: an idle engine is
never ended, however long it sleeps.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections import deque

from octavo.executor.base import Executor
from octavo.wire.plan import Plan, Result, WorkerInfo

logger = logging.getLogger(__name__)

EXIT_CODE = 70


class Watchdog:
    """`guard` first, then `start`. `timeout`: seconds that a step may take."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._interval = min(1.0, timeout / 4)
        self._busy_since: deque[float] = deque()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="octavo-watchdog", daemon=True)

    def guard(self, executor: Executor) -> Executor:
        return _Guarded(executor, self._busy_since)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while True:
            try:
                busy = time.monotonic() - self._busy_since[0]
            except IndexError:  # nothing in flight
                busy = 0.0
            if busy >= self._timeout:
                logger.critical("a step takes over %.1f s (--watchdog-timeout); ending the engine", self._timeout)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                sys.stderr.flush()
                os._exit(EXIT_CODE)
            remaining = self._timeout - busy + 2 * self._interval
            faulthandler.dump_traceback_later(remaining, exit=True, file=sys.stderr)
            if self._closed.wait(self._interval):
                return


class _Guarded:
    """Passes everything on and notes since when plans are in flight."""

    def __init__(self, executor: Executor, busy_since: deque[float]) -> None:
        self._executor = executor
        self._busy_since = busy_since
        self.depth = executor.depth

    def start(self) -> WorkerInfo:
        return self._executor.start()

    def submit(self, plan: Plan) -> None:
        self._busy_since.append(time.monotonic())
        self._executor.submit(plan)

    def collect(self) -> Result:
        try:
            return self._executor.collect()
        finally:
            self._busy_since.popleft()
            if self._busy_since:  # the next plan only runs from now on
                self._busy_since[0] = time.monotonic()

    def shutdown(self) -> None:
        self._executor.shutdown()
