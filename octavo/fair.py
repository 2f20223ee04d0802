"""Who comes next where only so much can be done at once: the keys in turn, each key's own in the order they came.

Invariant: whoever waits has at most one of every other key before it for each of its own key's. Not thread-safe.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class RoundRobin(Generic[T]):
    """A queue for each key."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def push(self, key: str, item: T) -> None:
        self._lines.setdefault(key, deque()).append(item)

    def first(self) -> T:
        """The next one, which stays. Raises IndexError when nobody waits."""
        if not self._lines:
            raise IndexError("nobody waits")
        return next(iter(self._lines.values()))[0]

    def pop(self) -> T:
        """Raises IndexError when nobody waits."""
        item = self.first()
        key, line = self._lines.popitem(last=False)
        line.popleft()
        if line:
            self._lines[key] = line  # behind the others
        return item


class FairGate:
    """Lets in as much as fits `capacity` at once, or one alone that is larger. Belongs to one event loop."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken = 0
        self._waiting: RoundRobin[tuple[int, asyncio.Future[None]]] = RoundRobin()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def enter(self, key: str, amount: int = 1) -> None:
        """Returns when `amount` is there for this key; then it is taken. May be cancelled."""
        if not self._waiting and self._fits(amount):
            self.taken += amount
            return
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(key, (amount, entered))
        try:
            await entered
        except asyncio.CancelledError:
            if entered.done() and not entered.cancelled():  # let in at that very moment
                self.leave(amount)
            else:
                self._admit()  # what stands behind it may fit
            raise

    def leave(self, amount: int = 1) -> None:
        """Gives back what `enter` took."""
        self.taken -= amount
        self._admit()

    @asynccontextmanager
    async def entered(self, key: str, amount: int = 1) -> AsyncIterator[None]:
        await self.enter(key, amount)
        try:
            yield
        finally:
            self.leave(amount)

    def _fits(self, amount: int) -> bool:
        return not self.taken or self.taken + amount <= self.capacity

    def _admit(self) -> None:
        while self._waiting:
            amount, entered = self._waiting.first()
            if not entered.done():  # else it was cancelled
                if not self._fits(amount):
                    return
                self.taken += amount
                entered.set_result(None)
            self._waiting.pop()
