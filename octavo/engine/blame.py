"""Which request broke the engine? Found by the engines themselves, each from what the one before has left.

Owned by the scheduler, which asks it whether a request may run and tells it who has come, was heard and has left. Told
apart by how the engine before ended. One that was killed from outside (kill -9, the kernel short of memory) says
nothing about requests: all go on, for as long as they get anywhere. One that broke down by itself has a cause: after
the second such crash the requests that were in flight at both are suspects. A single suspect is guilty; several are
tried one after the other, each when the one before has had a token, and the one at whose trial the engine breaks is
guilty. A guilty request is refused. Requests are known by a key that their client chose and keeps when it sends them
again.

Invariants: an end is certain (MOST_CRASHES, MOST_KILLS); at most one suspect runs at a time; what is known of a request
is in the file before the request is computed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable
from dataclasses import dataclass, field

from octavo.engine.inflight import InFlight, Past, read

logger = logging.getLogger(__name__)

CRASHES_OF_A_SUSPECT = 2
"""A request that was in flight at so many crashes may be their cause."""
MOST_CRASHES = 5
"""So many crashes end a request, whatever its trials have shown."""
MOST_KILLS = 16
"""So many engines killed from outside, one after the other, without a token of a request in between, end it: it may be
what takes the memory."""
MOST_AGE = 16
"""A request that so many engines have not had does not come back."""
VERDICT = "the engine crashed repeatedly while it worked on this request"


def identity(key: str) -> bytes:
    """What is kept of a request's key; empty for a request without one, of which nothing is known."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest() if key else b""


def judge(pasts: dict[bytes, Past], *, crashed: bool) -> dict[bytes, Past]:
    """What an engine left, and how it ended → what the next one begins with."""
    interrupted = {digest: past for digest, past in pasts.items() if past.in_flight}
    if crashed:
        for past in interrupted.values():
            past.crashes += 1
            past.unexplained += 1
        suspects = [digest for digest, past in interrupted.items() if past.crashes >= CRASHES_OF_A_SUSPECT]
        tried = [digest for digest, past in interrupted.items() if past.tried]
        guilty = tried or (suspects if len(suspects) == 1 else [])
        if guilty:
            return {digest: past for digest, past in pasts.items() if past.guilty} | {guilty[0]: Past(guilty=True)}
        for digest in suspects:
            interrupted[digest].suspect = True
    else:
        for past in interrupted.values():
            past.kills = 0 if past.heard else past.kills + 1
    for past in pasts.values():
        past.guilty |= past.unexplained >= MOST_CRASHES or past.kills >= MOST_KILLS
        past.age = 0 if past.in_flight else past.age + 1
        past.in_flight = past.heard = past.tried = False
    return {digest: past for digest, past in pasts.items() if past.age < MOST_AGE}


@dataclass(slots=True)
class _Case:
    """A request that is here."""

    past: Past
    here: set[Hashable] = field(default_factory=set)
    unheard: set[Hashable] = field(default_factory=set)
    """Of its sequences: those that have had no token."""


class Blame:
    def __init__(self, pasts: dict[bytes, Past] | None = None, file: InFlight | None = None) -> None:
        """`pasts`: from `judge`; `file`: where the next engine finds what this one has."""
        self._pasts = pasts or {}
        self._file = file
        self._cases: dict[bytes, _Case] = {}
        self._tried: bytes | None = None

    @classmethod
    def inherit(cls, path: str, *, crashed: bool) -> Blame:
        """After the engine that kept its file at `path`, if there was one. `crashed`: it broke down by itself."""
        pasts = judge(read(path), crashed=crashed)
        for past in pasts.values():
            if past.guilty:
                logger.error("a request will be refused: %s", VERDICT)
        try:
            file = InFlight(path, pasts)
        except OSError as error:
            logger.warning("%s: cannot be kept (%s): a request that breaks engines will not be found", path,
                           error.strerror)  # fmt: skip
            return cls(pasts)
        return cls(pasts, file)

    def is_guilty(self, digest: bytes) -> bool:
        past = self._pasts.get(digest)
        return past is not None and past.guilty

    def may_run(self, digest: bytes) -> bool:
        """Now. A suspect may when no other one is on trial; then its own trial begins."""
        past = self._pasts.get(digest)
        if past is None or not past.suspect or digest == self._tried:
            return True
        if self._tried is not None:
            return False
        self._tried, past.tried = digest, True
        self._write(digest, past)
        return True

    def enter(self, digest: bytes, sequence: Hashable) -> None:
        """A sequence of the request is about to run. Idempotent."""
        if not digest:
            return
        case = self._cases.get(digest)
        if case is None:
            case = self._cases[digest] = _Case(self._pasts.setdefault(digest, Past()))
            case.past.in_flight = True
            self._write(digest, case.past)
        if sequence not in case.here:
            case.here.add(sequence)
            case.unheard.add(sequence)

    def heard(self, digest: bytes, sequence: Hashable) -> bool:
        """It has had its first token here. → whether another suspect may run now."""
        case = self._cases.get(digest)
        if case is None:
            return False
        case.unheard.discard(sequence)
        if not case.past.heard:
            case.past.heard = True
            self._write(digest, case.past)
        return self._acquit(digest, case)

    def leave(self, digest: bytes, sequence: Hashable) -> bool:
        """It has ended, or left before it ever ran. → whether another suspect may run now."""
        case = self._cases.get(digest)
        if case is None:
            return False
        case.here.discard(sequence)
        case.unheard.discard(sequence)
        is_free = self._acquit(digest, case)
        if not case.here:
            del self._cases[digest], self._pasts[digest]
            if self._file is not None:
                self._file.drop(digest)
        return is_free

    def end(self) -> None:
        """The engine ends in good order."""
        if self._file is not None:
            self._file.end()
            self._file = None

    def _acquit(self, digest: bytes, case: _Case) -> bool:
        """Ends the trial of a request of which every sequence was heard."""
        if digest != self._tried or case.unheard:
            return False
        self._tried = None
        case.past.suspect = case.past.tried = False
        case.past.crashes = 0
        self._write(digest, case.past)
        return True

    def _write(self, digest: bytes, past: Past) -> None:
        if self._file is not None:
            self._file.write(digest, past)
