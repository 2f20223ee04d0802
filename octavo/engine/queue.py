"""Requests that wait for a row: by priority, then the owners in turn, each owner's own by arrival; bounded.

Owned by the scheduler. Requests of one owner and one priority stand in a line; the line that was served, or formed,
longest ago is next. One that had a row already (it was preempted, or held) takes its line to the front at no cost, so
that what was begun ends first. Prompts that one step cannot compute wait apart within their line, so that the scheduler
can let a short one pass while a long one is being computed. Invariants: `len()` is the number of live requests; dead
ones (aborted while waiting) are dropped when they come to the front, and never outnumber the live for long; whoever
waits has at most one new request of each other owner before it for each of its own owner's.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable

from octavo.engine.request import Request

_Entry = tuple[int, Request]  # arrivals are unique, so requests are never compared
_Key = tuple[int, bool, int, int]
_SHORT, _LONG = 0, 1


class _Line:
    """What one owner has waiting at one priority."""

    __slots__ = ("entries", "num_live", "num_returning", "priority", "turn")

    def __init__(self, priority: int, turn: int) -> None:
        self.priority = priority
        self.turn = turn
        self.num_live = 0
        self.num_returning = 0
        """Of those, how many had a row before."""
        self.entries: tuple[list[_Entry], list[_Entry]] = ([], [])
        """Heaps: the short ones, the long ones."""

    def key(self, kind: int) -> _Key:
        """Where its next one of this kind stands among those of all lines. Turns and arrivals are unique."""
        return (self.priority, not self.num_returning, self.turn, self.entries[kind][0][0])


class WaitingQueue:
    def __init__(self, limit: int, long_prompt: int) -> None:
        """`limit`: waiting requests before new ones are refused, 0 for none. `long_prompt`: more tokens than this
        to compute make a request long."""
        self._limit = limit
        self._long_prompt = long_prompt
        self._live: set[Request] = set()
        self._lines: dict[tuple[int, str], _Line] = {}
        self._fronts: tuple[list[tuple[_Key, _Line]], list[tuple[_Key, _Line]]] = ([], [])
        """Heaps of the lines by what stands first in them; an entry whose key is no longer its line's is dead."""
        self._turns = itertools.count()

    def __len__(self) -> int:
        return len(self._live)

    def full(self, spare: int) -> bool:
        """No more may be added, `spare` of those waiting having a place already."""
        return bool(self._limit) and len(self._live) >= self._limit + spare

    def exceeds_share(self, owner: str, rows: int, others: Iterable[Request]) -> bool:
        """Whether `owner` has all that is its own of a full queue: as much of its places and of the `rows` as every
        other owner with something in them may have. `others`: requests that count beside those waiting."""
        counts = Counter(request.add.owner for request in itertools.chain(self._live, others))
        share = (self._limit + rows) // len(counts.keys() | {owner})
        return counts[owner] >= max(share, 1)

    def push(self, request: Request) -> None:
        place = (request.priority, request.add.owner)
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = _Line(request.priority, next(self._turns))
        kind = self._kind(request)
        entries = line.entries[kind]
        heapq.heappush(entries, (request.arrival, request))
        self._live.add(request)
        line.num_live += 1
        if request.first_scheduled is not None:
            line.num_returning += 1
            if line.num_returning == 1:
                self._offer(line)
                return
        if entries[0][1] is request:
            heapq.heappush(self._fronts[kind], (line.key(kind), line))

    def serve(self, request: Request) -> None:
        """Takes out the first request of a line, as `first` gave it; unless it had a row before, its owner is the last
        whose turn it is from now on."""
        if request.first_scheduled is None:
            self._lines[request.priority, request.add.owner].turn = next(self._turns)
        self.remove(request)

    def remove(self, request: Request) -> None:
        """Takes out a request wherever it stands. Only one that stood first may come back."""
        line = self._forget(request)
        if not line.num_live:
            return
        entries = line.entries[self._kind(request)]
        if entries[0][1] is request:  # so that it can be pushed again
            heapq.heappop(entries)
            self._offer(line)
        elif request.first_scheduled is not None and not line.num_returning:
            self._offer(line)
        if sum(map(len, line.entries)) > 2 * line.num_live + 16:
            self._clean(line)

    def take(self, wanted: Callable[[Request], bool]) -> list[Request]:
        """Takes out all those that are wanted, in order; they may come back."""
        found = sorted((request for request in self._live if wanted(request)), key=lambda request: request.order)
        for line in {self._forget(request) for request in found}:
            self._clean(line)
            self._offer(line)
        return found

    def first(self, pass_long: bool) -> Request | None:
        """The next request; with `pass_long` the next of the short ones."""
        short = self._front(_SHORT)
        long = None if pass_long else self._front(_LONG)
        if long is None or (short is not None and short.key(_SHORT) < long.key(_LONG)):
            return None if short is None else short.entries[_SHORT][0][1]
        return long.entries[_LONG][0][1]

    @property
    def has_short(self) -> bool:
        return self._front(_SHORT) is not None

    def _kind(self, request: Request) -> int:
        return _LONG if len(request.token_ids) > self._long_prompt else _SHORT

    def _forget(self, request: Request) -> _Line:
        """It counts no longer, though it may still stand in its line; a line without any is given up."""
        self._live.remove(request)
        place = (request.priority, request.add.owner)
        line = self._lines[place]
        line.num_live -= 1
        line.num_returning -= request.first_scheduled is not None
        if not line.num_live:
            del self._lines[place]
        return line

    def _offer(self, line: _Line) -> None:
        """Its place among the lines has changed."""
        for kind, entries in enumerate(line.entries):
            while entries and entries[0][1] not in self._live:
                heapq.heappop(entries)
            if entries:
                heapq.heappush(self._fronts[kind], (line.key(kind), line))
            fronts = self._fronts[kind]
            if len(fronts) > 2 * len(self._lines) + 16:
                current = {entry[0]: entry for entry in fronts if self._is_current(entry, kind)}
                fronts[:] = sorted(current.values(), key=lambda entry: entry[0])

    def _clean(self, line: _Line) -> None:
        for entries in line.entries:
            entries[:] = [entry for entry in entries if entry[1] in self._live]
            heapq.heapify(entries)

    def _front(self, kind: int) -> _Line | None:
        """The line whose next one of this kind is the first of all."""
        fronts = self._fronts[kind]
        while fronts and not self._is_current(fronts[0], kind):
            heapq.heappop(fronts)
        return fronts[0][1] if fronts else None

    def _is_current(self, entry: tuple[_Key, _Line], kind: int) -> bool:
        key, line = entry
        return bool(line.num_live) and bool(line.entries[kind]) and key == line.key(kind)
