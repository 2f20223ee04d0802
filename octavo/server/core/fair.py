"""Who comes next where only so much can be done at once: the keys in turn, each key's own in the order they came.

Owned by whoever has the bounded thing (memory of bodies, threads that tokenize). On one event loop. Invariant: what is
taken never exceeds `capacity`, unless one alone is larger; a key that waits is passed over by at most one of each other
key for each of its own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class _Waiting:
    amount: int
    admitted: asyncio.Future[None]


class FairGate:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.taken = 0
        self._waiting: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        """By key, the key whose turn is next first."""

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def enter(self, key: str, amount: int = 1) -> None:
        """Returns when `amount` is there for this key; then it is taken. May be cancelled."""
        if not self._waiting and self._fits(amount):
            self.taken += amount
            return
        waiting = _Waiting(amount, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(key, deque()).append(waiting)
        try:
            await waiting.admitted
        except asyncio.CancelledError:
            if waiting.admitted.done() and not waiting.admitted.cancelled():
                self.leave(amount)  # it was let in at that very moment
            else:
                self._forget(key, waiting)
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
            key, queue = next(iter(self._waiting.items()))
            if not self._fits(queue[0].amount):
                return
            waiting = queue.popleft()
            del self._waiting[key]
            if queue:
                self._waiting[key] = queue  # behind the others
            if not waiting.admitted.done():  # else it was cancelled, and has not heard of it yet
                self.taken += waiting.amount
                waiting.admitted.set_result(None)

    def _forget(self, key: str, waiting: _Waiting) -> None:
        queue = self._waiting.get(key)
        if queue is not None and waiting in queue:
            queue.remove(waiting)
            if not queue:
                del self._waiting[key]
        self._admit()
