"""A deadline for a client, fair to it when this process itself stood still.

After a stop (SIGSTOP, a frozen container, a busy machine) an event loop runs what was due before it reads what has come
meanwhile. Invariant: whoever is late only because nobody looked has GRACE_S more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

GRACE_S = 1.0


class Deadline:
    """Calls `call` in `seconds`, unless cancelled."""

    __slots__ = ("_call", "_due", "_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._due = loop.time() + seconds
        self._handle = loop.call_later(seconds, self._fire)

    def cancel(self) -> None:
        self._handle.cancel()

    def _fire(self) -> None:
        now = self._loop.time()
        if now - self._due > GRACE_S:
            self._due = now + GRACE_S
            self._handle = self._loop.call_later(GRACE_S, self._fire)
        else:
            self._call()
