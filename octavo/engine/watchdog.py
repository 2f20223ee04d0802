"""Ends an engine whose step hangs, with all stacks in the log. Owned by engine/process.py.

A thread looks at how long the loop's turn has been busy. A step that never gives back the interpreter lock would stop
that thread too, so it also keeps a timer of faulthandler armed, which needs no lock. Invariant: an idle engine is never
ended, however long it sleeps.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from octavo import log

logger = logging.getLogger(__name__)

EXIT_CODE = 70


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
        while True:
            since = self._busy_since()
            busy = 0.0 if since is None else time.monotonic() - since
            if busy >= self._timeout:
                what = "a step takes over %.1f s (--watchdog-timeout); ending the engine"
                logger.critical(what, self._timeout, extra=log.about(stacks=_stacks()))
                self._on_hang(f"a step took over {self._timeout:.1f} s; its stacks stand above")
                os._exit(EXIT_CODE)
            remaining = self._timeout - busy + 2 * self._interval
            faulthandler.dump_traceback_later(remaining, exit=True, file=sys.stderr)
            if self._closed.wait(self._interval):
                return


def _stacks() -> str:
    """Of all threads, the last calls first."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read()
