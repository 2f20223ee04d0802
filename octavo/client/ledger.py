"""The ledger: every request in flight of one client, the tokens it has so far, and which engine has it.

Owned by the client, whose connections tell it which engines can take work and which are lost, and hand it what engines
say. It stands above them: a request goes to the engine with the least to do, and what a lost engine had goes to
another, or waits for one. Each time a sequence is sent it gets a fresh id, so nothing that an engine still says of an
earlier sending can be mistaken for the present; its request's key stays the same, so that engines know it again.
Invariant: a request is here until it had exactly one end (its last final output, a failure) or has left.
"""

from __future__ import annotations

import itertools
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from octavo.errors import ApiError, EngineError, QueueFull, Unavailable, error_from_wire
from octavo.wire.messages import Abort, Add, Failed, Outputs, ToEngine, TokenOutput

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Where requests can be sent."""

    def send(self, message: ToEngine) -> bool:
        """Without blocking; whether that could be done."""
        ...


@dataclass(eq=False, frozen=True, slots=True)
class Sequence:
    """One that has not ended, as its request gives it."""

    add: Add
    """With the tokens that it has so far; the ledger gives it an id and a key."""
    take: Callable[[TokenOutput], bool]
    """Takes what the engine made; → it needs no more (a stop string): the engine aborts it."""


class Request(Protocol):
    """One request of the ledger."""

    @property
    def done(self) -> bool:
        """Every sequence has ended."""
        ...

    def unfinished(self) -> list[Sequence]: ...

    def failed(self, error: ApiError) -> None: ...


@dataclass(eq=False, slots=True)
class _Entry:
    """A request and where it is."""

    key: str
    engine: Engine | None = None
    """None: it waits for one."""


@dataclass(eq=False, frozen=True, slots=True)
class _Sent:
    """A sequence under the id of its last sending."""

    request: Request
    take: Callable[[TokenOutput], bool]
    owner: str


class Ledger:
    def __init__(self) -> None:
        self._requests: dict[Request, _Entry] = {}
        self._sent: dict[int, _Sent] = {}
        self._engines: dict[Engine, None] = {}
        """Those that take requests."""
        self._ids = itertools.count(1)
        self._keys = itertools.count(1)
        self._name = secrets.token_hex(8)
        """Makes keys differ from those of other clients."""

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._requests)

    # -- requests

    def enter(self, request: Request, limit: int | None = None) -> None:
        """Record a request and send its sequences. `limit`: sequences in flight beyond which an owner has no more
        than its share: what every owner with some in flight may have of them.
        Raises QueueFull, Unavailable; then nothing of it stays."""
        sequences = request.unfinished()
        if limit is not None and len(self._sent) + len(sequences) > limit and sequences:
            self._check_share(sequences[0].add.owner, len(sequences), limit)
        entry = self._requests[request] = _Entry(f"{self._name}-{next(self._keys)}")
        if not self._transmit(request, entry, sequences):
            self.leave(request)
            raise Unavailable("the engine is not reachable", retry_after=1)

    def _check_share(self, owner: str, num_more: int, limit: int) -> None:
        counts = Counter(sent.owner for sent in self._sent.values())
        if counts[owner] + num_more > limit // len(counts.keys() | {owner}):
            raise QueueFull(f"{len(self._sent)} sequences are running or waiting: the queue is full", retry_after=1)

    def leave(self, request: Request) -> None:
        """Drop what is left of a request; its engine aborts it. Idempotent."""
        entry = self._requests.pop(request, None)
        if entry is not None:
            self._abort(entry, [id for id, sent in self._sent.items() if sent.request is request])

    def fail_all(self, error: ApiError) -> None:
        """End everything in flight with `error`, and have its engines abort it."""
        for request in list(self._requests):
            self._fail(request, error)

    def fail_waiting(self, error: ApiError) -> None:
        """The same for what no engine has."""
        for request, entry in list(self._requests.items()):
            if entry.engine is None:
                self._fail(request, error)

    # -- engines

    def attach(self, engine: Engine) -> int:
        """An engine takes requests that knows nothing of this ledger: it gets what waits. → the number of those."""
        self._engines[engine] = None
        waiting = [request for request, entry in self._requests.items() if entry.engine is None]
        for request in waiting:
            self._send_again(request)
        return len(waiting)

    def drain(self, engine: Engine) -> None:
        """An engine finishes what it has and takes nothing more."""
        self._engines.pop(engine, None)

    def lose(self, engine: Engine) -> None:
        """An engine is gone: others get what it had, or it waits until there is one. Idempotent."""
        self._engines.pop(engine, None)
        lost = {request: entry for request, entry in self._requests.items() if entry.engine is engine}
        for id in [id for id, sent in self._sent.items() if sent.request in lost]:
            del self._sent[id]
        for request, entry in lost.items():
            entry.engine = None
            if self._engines:
                self._send_again(request)

    def receive(self, message: Outputs) -> None:
        """Hand on what an engine made; what belongs to no request is from the past and dropped."""
        sent_by_id = self._sent
        for item in message.items:
            sent = sent_by_id.get(item.id)
            if sent is None:
                continue
            final = item.finish_reason is not None
            if final:
                del sent_by_id[item.id]
            request = sent.request
            enough = sent.take(item) and not final
            if enough and (entry := self._requests.get(request)) is not None:
                self._abort(entry, [item.id])
            if (final or enough) and request.done:
                self._requests.pop(request, None)

    def receive_failure(self, message: Failed) -> None:
        """The same for the end of a sequence that an engine cannot finish."""
        if (sent := self._sent.pop(message.id, None)) is not None:
            self._fail(sent.request, error_from_wire(message.code, message.message, message.param))

    # --

    def _send_again(self, request: Request) -> None:
        entry = self._requests.get(request)
        if entry is not None and not self._transmit(request, entry, request.unfinished()):
            self._fail(request, EngineError("the request could not be sent to the engine again"))

    def _transmit(self, request: Request, entry: _Entry, sequences: list[Sequence]) -> bool:
        if not self._engines:
            return False
        entry.engine = engine = self._least_busy()
        for sequence in sequences:
            id = next(self._ids)
            self._sent[id] = _Sent(request, sequence.take, sequence.add.owner)
            if not engine.send(msgspec.structs.replace(sequence.add, id=id, key=entry.key)):
                return False
        return True

    def _least_busy(self) -> Engine:
        if len(self._engines) == 1:
            return next(iter(self._engines))
        busy = Counter(entry.engine for entry in self._requests.values())
        return min(self._engines, key=busy.__getitem__)

    def _fail(self, request: Request, error: ApiError) -> None:
        """One failed sequence ends its request: the others of it are aborted."""
        logger.debug("a request failed: %s", error)
        request.failed(error)
        self.leave(request)

    def _abort(self, entry: _Entry, ids: list[int]) -> None:
        for id in ids:
            del self._sent[id]
        if ids and entry.engine is not None:
            entry.engine.send(Abort(ids))
