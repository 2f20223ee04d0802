"""The ledger: every request in flight of one client with the tokens it has so far, so that an engine may die.

Owned by the client (client/engine.py, client/fake.py), which tells it when an engine is attached or lost and hands it
what the engine sends. Each time a sequence is sent it gets a fresh id, so nothing that an earlier engine, or an earlier
session of the same engine, still says can be mistaken for the present. Invariant: a request is here until it had
exactly one end (its last final output, a failure) or has left.

Which request broke the engine? Told apart by how the engine ended. One that was killed from outside (kill -9, the
kernel short of memory) says nothing about requests: all of them go on, for as long as they get anywhere. One that broke
down by itself has a cause: after the second such crash the requests that were in flight at both are suspects. A single
suspect fails; several are tried one after the other, and the one at whose trial the engine breaks again fails.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from octavo.errors import ApiError, EngineError, QueueFull, Unavailable, error_from_wire
from octavo.wire.messages import Abort, Add, Failed, Outputs, ToEngine, TokenOutput

logger = logging.getLogger(__name__)

CRASHES_OF_A_SUSPECT = 2
"""A request that was in flight at so many crashes may be their cause."""
MOST_CRASHES = 5
"""So many crashes end a request, whatever its trials have shown."""
MOST_KILLS = 16
"""So many engines killed from outside, one after the other, without a token of a request in between, end it: it may be
what takes the memory."""


class Request(Protocol):
    """One request of the ledger; it knows its sequences by ids of its own, which `unfinished` gives."""

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


@dataclass(slots=True)
class _Past:
    """What a request has been through."""

    crashes: int = 0
    """Engines that broke down while it was in flight, since its last trial."""
    unexplained: int = 0
    """The same, since the last time that a cause was found."""
    kills: int = 0
    """Engines killed from outside since it got its last token."""
    num_tokens: int = 0
    """Its tokens when it was last sent again."""


@dataclass(eq=False, frozen=True, slots=True)
class _Sent:
    """A sequence under the id of its last sending."""

    request: Request
    own_id: int


class Ledger:
    """`send` gives a message to the engine without blocking and says whether it could."""

    def __init__(self, send: Callable[[ToEngine], bool]) -> None:
        self._send = send
        self._requests: dict[Request, _Past] = {}
        self._sent: dict[int, _Sent] = {}
        self._ids = itertools.count(1)
        self._attached = False
        self._interrupted: dict[Request, None] = {}
        """Requests that the engine had when it was lost, until it is known how it ended."""
        self._suspects: deque[Request] = deque()
        """Not sent yet: each waits for the end of the trial before."""
        self._tried: Request | None = None
        """The suspect on trial."""
        self._unheard: set[int] = set()
        """Of the suspect on trial: ids that no token has come for since. It is cleared when none is left."""

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._requests)

    def enter(self, request: Request, limit: int | None = None) -> None:
        """Record a request and send its sequences. `limit`: most sequences that may be in flight.
        Raises QueueFull, Unavailable; then nothing of it stays."""
        adds = request.unfinished()
        if limit is not None and len(self._sent) + len(adds) > limit:
            raise QueueFull(f"{len(self._sent)} sequences are running or waiting: the queue is full", retry_after=1)
        self._requests[request] = _Past()
        if not self._attached or not self._transmit(request, adds):
            self.leave(request)
            raise Unavailable("the engine is not reachable", retry_after=1)

    def leave(self, request: Request) -> None:
        """Drop what is left of a request; the engine aborts it. Idempotent."""
        if request in self._requests:
            del self._requests[request]
            self._abort([id for id, sent in self._sent.items() if sent.request is request])
            if request is self._tried:
                self._try_next()

    def receive(self, message: Outputs | Failed) -> None:
        """Hand on what the engine said; what belongs to no request is from the past and dropped."""
        if isinstance(message, Failed):
            if (sent := self._sent.pop(message.id, None)) is not None:
                self._fail(sent.request, error_from_wire(message.code, message.message, message.param))
            return
        if self._unheard:
            self._unheard -= {item.id for item in message.items if item.token_ids}
        for item in message.items:
            sent = self._sent.get(item.id)
            if sent is None:
                continue
            final = item.finish_reason is not None
            if final:
                del self._sent[item.id]
            request = sent.request
            item.id = sent.own_id
            enough = request.output(item)
            if enough:
                self._abort([id for id, s in self._sent.items() if s.request is request and s.own_id in enough])
            if (final or enough) and request.done:
                self._requests.pop(request, None)
        if self._tried is not None and self._unheard.isdisjoint(self._sent):
            if self._tried in self._requests:
                self._requests[self._tried].crashes = 0
            self._try_next()

    def suspend(self, *, died: bool) -> None:
        """No engine is attached any more. `died`: it has not merely forgotten this client or been told to stop."""
        was_attached, self._attached = self._attached, False
        if was_attached:
            self._interrupted = {sent.request: None for sent in self._sent.values()} if died else {}
        self._sent.clear()

    def resume(self, *, crashed: bool) -> int:
        """An engine is attached that knows nothing of this ledger: send all of it. `crashed`: the engine that died
        broke down by itself. → the number of requests."""
        interrupted = [request for request in self._interrupted if request in self._requests]
        self._interrupted = {}
        held = [r for r in (self._tried, *self._suspects) if r is not None and r in self._requests]
        suspects = self._after_crash(interrupted) if crashed else self._after_kill(interrupted, held)
        self._attached = True
        self._sent.clear()
        self._unheard.clear()
        self._suspects, self._tried = deque(suspects), None
        for request in list(self._requests):
            if request not in suspects:
                self._send_again(request)
        self._try_next()
        return len(self._requests)

    def fail_all(self, error: ApiError) -> None:
        """End everything in flight with `error`, and have the engine abort it."""
        for request in list(self._requests):
            self._fail(request, error)

    def _after_crash(self, interrupted: list[Request]) -> list[Request]:
        """The engine broke down while it had these: ends those that must be the cause; → those that may be."""
        for request in interrupted:
            self._requests[request].crashes += 1
            self._requests[request].unexplained += 1
        suspects = [request for request in interrupted if self._requests[request].crashes >= CRASHES_OF_A_SUSPECT]
        guilty = self._tried if self._tried in interrupted else None
        if guilty is None and len(suspects) == 1:
            guilty = suspects[0]
        if guilty is not None:
            self._blame(guilty)
            self._requests = {request: _Past() for request in self._requests}
            return []
        for request in interrupted:
            if self._requests[request].unexplained >= MOST_CRASHES:
                self._blame(request)
        return [request for request in suspects if request in self._requests]

    def _after_kill(self, interrupted: list[Request], held: list[Request]) -> list[Request]:
        """The engine was killed from outside while it had these; → those whose trial goes on."""
        for request in interrupted:
            past = self._requests[request]
            num_tokens = _num_tokens(request)
            past.kills = past.kills + 1 if num_tokens == past.num_tokens else 0
            past.num_tokens = num_tokens
            if past.kills >= MOST_KILLS:
                self._blame(request)
        return [request for request in held if request in self._requests]

    def _blame(self, request: Request) -> None:
        logger.error("a request ends: the engine crashed repeatedly while it worked on it")
        self._fail(request, EngineError("the engine crashed repeatedly while it worked on this request"))

    def _try_next(self) -> None:
        """Send the next suspect, if there is one: whatever breaks the engine now, breaks it because of this one."""
        self._tried = None
        self._unheard.clear()
        while self._suspects and self._attached:
            request = self._suspects.popleft()
            if request in self._requests and self._send_again(request):
                self._tried = request
                self._unheard = {id for id, sent in self._sent.items() if sent.request is request}
                return

    def _send_again(self, request: Request) -> bool:
        if self._transmit(request, request.unfinished()):
            return True
        self._fail(request, EngineError("the request could not be sent to the engine again"))
        return False

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


def _num_tokens(request: Request) -> int:
    """Of its unfinished sequences: it differs whenever the request has got on."""
    return sum(len(add.output_ids) for add in request.unfinished())
