"""Who is next where several keys wait: round robin over the keys, each key's own in their order. Not thread-safe.

Invariant: whoever waits has at most one of every other key before it for each of its own key's.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class RoundRobin(Generic[T]):
    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def push(self, key: str, item: T) -> None:
        self._lines.setdefault(key, deque()).append(item)

    def pop(self) -> T:
        """Raises IndexError when nobody waits."""
        if not self._lines:
            raise IndexError("nobody waits")
        key, line = self._lines.popitem(last=False)
        item = line.popleft()
        if line:
            self._lines[key] = line  # behind the others
        return item


class Turns:
    """`places`: so many may be inside at once. Belongs to one event loop."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: RoundRobin[asyncio.Future[None]] = RoundRobin()

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        if self._places:
            self._places -= 1
        else:
            entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.push(key, entered)
            try:
                await entered
            except asyncio.CancelledError:
                if entered.done() and not entered.cancelled():  # let in at that very moment
                    self._leave()
                raise
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        while len(self._waiting):
            entered = self._waiting.pop()
            if not entered.done():
                entered.set_result(None)
                return
        self._places += 1
