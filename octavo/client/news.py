"""A bell for one sleeper: what an asyncio.Event is, without the parts that cost as much as a token's text.

On one event loop. Invariant: a ring is never lost; `wait` returns at once when there was one since it last returned.
"""

from __future__ import annotations

import asyncio


class News:
    __slots__ = ("_rung", "_sleeper")

    def __init__(self) -> None:
        self._rung = False
        self._sleeper: asyncio.Future[None] | None = None

    def ring(self) -> None:
        self._rung = True
        sleeper = self._sleeper
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    async def wait(self) -> None:
        """Until the next ring. One task at a time; may be cancelled."""
        if not self._rung:
            assert self._sleeper is None, "one task waits for news at a time"
            self._sleeper = asyncio.get_running_loop().create_future()
            try:
                await self._sleeper
            finally:
                self._sleeper = None
        self._rung = False
