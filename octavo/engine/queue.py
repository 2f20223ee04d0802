"""Requests that wait for a row: by priority, then arrival, bounded.

Owned by the scheduler. Prompts that one step cannot compute wait in a line of their own, so that the scheduler can let
a short one pass while a long one is being computed. Invariant: `len()` is the number of live requests; dead ones
(aborted while waiting) are dropped when they come to the front, and never outnumber the live for long.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from octavo.engine.request import Request

_Entry = tuple[tuple[int, int], Request]  # orders are unique, so requests are never compared


class WaitingQueue:
    def __init__(self, limit: int, long_prompt: int) -> None:
        """`limit`: waiting requests before new ones are refused, 0 for none. `long_prompt`: more tokens than this
        to compute make a request long."""
        self._limit = limit
        self._long_prompt = long_prompt
        self._short: list[_Entry] = []
        self._long: list[_Entry] = []
        self._live: set[Request] = set()

    def __len__(self) -> int:
        return len(self._live)

    def full(self, spare: int) -> bool:
        """No more may be added, `spare` of those waiting having a place already."""
        return bool(self._limit) and len(self._live) >= self._limit + spare

    def push(self, request: Request) -> None:
        line = self._long if self._is_long(request) else self._short
        heapq.heappush(line, (request.order, request))
        self._live.add(request)

    def remove(self, request: Request) -> None:
        """Takes out a request wherever it stands. Only one that stood first may come back."""
        self._live.remove(request)
        for line in (self._short, self._long):
            if line and line[0][1] is request:  # so that it can be pushed again
                heapq.heappop(line)
        if len(self._short) + len(self._long) > 2 * len(self._live) + 16:
            for line in (self._short, self._long):
                line[:] = [entry for entry in line if entry[1] in self._live]
                heapq.heapify(line)

    def take(self, wanted: Callable[[Request], bool]) -> list[Request]:
        """Takes out all those that are wanted, in order; they may come back."""
        found = sorted((request for request in self._live if wanted(request)), key=lambda request: request.order)
        self._live.difference_update(found)
        if found:
            for line in (self._short, self._long):
                line[:] = [entry for entry in line if entry[1] in self._live]
                heapq.heapify(line)
        return found

    def first(self, pass_long: bool) -> Request | None:
        """The next request; with `pass_long` the next of the short ones."""
        short = self._front(self._short)
        long = None if pass_long else self._front(self._long)
        if short is None or long is None:
            return short or long
        return short if short.order < long.order else long

    @property
    def has_short(self) -> bool:
        return self._front(self._short) is not None

    def _is_long(self, request: Request) -> bool:
        return len(request.token_ids) > self._long_prompt

    def _front(self, line: list[_Entry]) -> Request | None:
        while line and line[0][1] not in self._live:
            heapq.heappop(line)
        return line[0][1] if line else None
