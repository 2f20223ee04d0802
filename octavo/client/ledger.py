"""The ledger: every request in flight of one client with the tokens it has so far, so that an engine may die.

Owned by the client (client/engine.py, client/fake.py), which tells it when an engine is attached or lost and hands it
what the engine sends. Each time a sequence is sent it gets a fresh id, so nothing that an earlier engine, or an earlier
session of the same engine, still says can be mistaken for the present. Invariant: a request is here until it had
exactly one end (its last final output, a failure) or has left.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from octavo.errors import ApiError, EngineError, QueueFull, Unavailable, error_from_wire
from octavo.wire.messages import Abort, Add, Failed, Outputs, ToEngine, TokenOutput

logger = logging.getLogger(__name__)

CRASHES_PER_REQUEST = 2
"""A request that was in flight at so many crashes may be their cause: it fails."""
CRASHES_IN_WINDOW = 3
CRASH_WINDOW_S = 60.0
"""So many crashes within this time fail whatever is in flight."""


class Request(Protocol):
    """One request of the ledger; it knows its sequences by ids of its own, which `unfinished` gives."""

    crashes: int

    @property
    def done(self) -> bool:
        """Every sequence has ended."""
        ...

    def unfinished(self) -> list[Add]:
        """An Add for each sequence that has not ended, with the tokens it has so far."""
        ...

    def output(self, message: TokenOutput) -> list[int]:
        """Takes what the engine made; → ids of sequences that need no more (a stop string): the engine aborts them."""
        ...

    def failed(self, error: ApiError) -> None: ...


@dataclass(eq=False, frozen=True, slots=True)
class _Sent:
    """A sequence under the id of its last sending."""

    request: Request
    own_id: int


class Ledger:
    """`send` gives a message to the engine without blocking and says whether it could."""

    def __init__(self, send: Callable[[ToEngine], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._requests: dict[Request, None] = {}
        self._sent: dict[int, _Sent] = {}
        self._ids = itertools.count(1)
        self._attached = False
        self._crash_times: deque[float] = deque(maxlen=CRASHES_IN_WINDOW)

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._requests)

    def enter(self, request: Request, limit: int | None = None) -> None:
        """Record a request and send its sequences. `limit`: most sequences that may be in flight.
        Raises QueueFull, Unavailable; then nothing of it stays."""
        adds = request.unfinished()
        if limit is not None and len(self._sent) + len(adds) > limit:
            raise QueueFull(f"{len(self._sent)} sequences are running or waiting: the queue is full", retry_after=1)
        self._requests[request] = None
        if not self._attached or not self._transmit(request, adds):
            self.leave(request)
            raise Unavailable("the engine is not reachable", retry_after=1)

    def leave(self, request: Request) -> None:
        """Drop what is left of a request; the engine aborts it. Idempotent."""
        if request in self._requests:
            del self._requests[request]
            self._abort([id for id, sent in self._sent.items() if sent.request is request])

    def receive(self, message: Outputs | Failed) -> None:
        """Hand on what the engine said; what belongs to no request is from the past and dropped."""
        if isinstance(message, Failed):
            if (sent := self._sent.pop(message.id, None)) is not None:
                self._fail(sent.request, error_from_wire(message.code, message.message, message.param))
            return
        for item in message.items:
            sent = self._sent.get(item.id)
            if sent is None:
                continue
            final = item.finish_reason is not None
            if final:
                del self._sent[item.id]
            item.id = sent.own_id
            request = sent.request
            enough = request.output(item)
            if enough:
                self._abort([id for id, s in self._sent.items() if s.request is request and s.own_id in enough])
            if (final or enough) and request.done:
                self._requests.pop(request, None)

    def suspend(self, *, crashed: bool) -> None:
        """No engine is attached any more. `crashed`: it died, and what was in flight may be the cause."""
        was_attached, self._attached = self._attached, False
        self._sent.clear()
        if not crashed or not was_attached:
            return
        now = self._clock()
        self._crash_times.append(now)
        too_many = len(self._crash_times) == CRASHES_IN_WINDOW and now - self._crash_times[0] <= CRASH_WINDOW_S
        for request in list(self._requests):
            request.crashes += 1
            if too_many or request.crashes >= CRASHES_PER_REQUEST:
                self._fail(request, EngineError("the engine crashed repeatedly while it worked on this request"))

    def resume(self) -> int:
        """An engine is attached that knows nothing of this ledger: send all of it. → the number of requests."""
        self._attached = True
        self._sent.clear()
        for request in list(self._requests):
            if not self._transmit(request, request.unfinished()):
                self._fail(request, EngineError("the request could not be sent to the engine again"))
        return len(self._requests)

    def fail_all(self, error: ApiError) -> None:
        """End everything in flight with `error`, and have the engine abort it."""
        for request in list(self._requests):
            self._fail(request, error)

    def _transmit(self, request: Request, adds: list[Add]) -> bool:
        for add in adds:
            id = next(self._ids)
            self._sent[id] = _Sent(request, add.id)
            if not self._send(msgspec.structs.replace(add, id=id)):
                return False
        return True

    def _fail(self, request: Request, error: ApiError) -> None:
        """One failed sequence ends its request: the others of it are aborted."""
        logger.debug("a request failed: %s", error)
        request.failed(error)
        self.leave(request)

    def _abort(self, ids: list[int]) -> None:
        for id in ids:
            del self._sent[id]
        if ids and self._attached:
            self._send(Abort(ids))
