"""Ends an engine whose step hangs, with all stacks in the log. Owned by engine/process.py.

A thread looks at how long the loop's turn has been busy, and counts only time in which it could look: a process that
was stopped (SIGSTOP, a frozen container) has not hung. A step that never gives back the interpreter lock would stop
that thread too, so it also keeps a timer of faulthandler armed, which needs no lock; that one cannot tell a hang from
a stop, and so has more patience. Invariant: an idle engine is never ended, however long it sleeps.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from octavo import log

logger = logging.getLogger(__name__)

EXIT_CODE = 70
LOCKED_S = 300.0
"""How much later than its time-out a step is ended that holds the interpreter lock."""


class Watchdog:
    """`timeout`: seconds that a turn may take. `busy_since`: when it began (time.monotonic), None while idle.
    `on_hang` is told why, just before the end."""

    def __init__(
        self, timeout: float, busy_since: Callable[[], float | None], on_hang: Callable[[str], None] = lambda _why: None
    ) -> None:
        self._timeout = timeout
        self._busy_since = busy_since
        self._on_hang = on_hang
        self._interval = min(1.0, timeout / 4)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="octavo-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        turn: float | None = None
        busy, looked = 0.0, time.monotonic()
        while True:
            since, now = self._busy_since(), time.monotonic()
            passed = min(now - looked, 2 * self._interval)
            busy = 0.0 if since is None else busy + passed if since == turn else min(now - since, passed)
            turn, looked = since, now
            if busy >= self._timeout:
                what = "a step takes over %.1f s (--watchdog-timeout); ending the engine"
                logger.critical(what, self._timeout, extra=log.about(stacks=_stacks()))
                self._on_hang(f"a step took over {self._timeout:.1f} s; its stacks stand above")
                os._exit(EXIT_CODE)
            faulthandler.dump_traceback_later(self._timeout - busy + LOCKED_S, exit=True, file=sys.stderr)
            if self._closed.wait(self._interval):
                return


def _stacks() -> str:
    """Of all threads, the last calls first."""
    with os.fdopen(os.memfd_create("octavo-stacks"), "w+") as file:  # there need be no folder for temporary files
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read()
