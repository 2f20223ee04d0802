"""Which requests this engine has, in a file that the next one can read however this one ended.

Owned by engine/blame.py. The file is mapped, so that an entry is written without a system call and outlives the
process: slots of 32 bytes, each a request's digest and what it has been through. Invariants: the file is there whole or
not at all (a new one takes the old one's place); its blocks are allocated before they are written; an engine that
cannot keep it works on, and says so once.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_SLOT = struct.Struct("<16s5B11x")
_FIRST_SLOTS = 1024
_MOST_BYTES = 64 << 20
_NOBODY = bytes(16)


@dataclass(slots=True)
class Past:
    """What a request has been through in this engine and those before."""

    in_flight: bool = False
    heard: bool = False
    """It has had a token from this engine."""
    suspect: bool = False
    """It may be what breaks engines, and is tried alone."""
    tried: bool = False
    """Its trial is going on."""
    guilty: bool = False
    crashes: int = 0
    """Engines that broke down while they had it, since its last trial."""
    unexplained: int = 0
    """The same, since the last time that a cause was found."""
    kills: int = 0
    """Engines killed from outside that had it, since its last token."""
    age: int = 0
    """Engines since the last one that had it."""


def read(path: str) -> dict[bytes, Past]:
    """What the engine before left at `path`, by the requests' digests; nothing where it left nothing."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            content = file.read(_MOST_BYTES)
    except OSError:
        return {}
    whole = len(content) // _SLOT.size * _SLOT.size
    found = {}
    for digest, flags, crashes, unexplained, kills, age in _SLOT.iter_unpack(content[:whole]):
        if digest != _NOBODY:
            in_flight, heard, suspect, tried, guilty = (bool(flags & 1 << bit) for bit in range(5))
            found[digest] = Past(in_flight, heard, suspect, tried, guilty, crashes, unexplained, kills, age)
    return found


class InFlight:
    def __init__(self, path: str, pasts: dict[bytes, Past]) -> None:
        """Begins a file with these. Raises OSError where none can be kept."""
        self._path = path
        num_slots = max(_FIRST_SLOTS, 2 * len(pasts))
        self._free = list(range(num_slots - 1, -1, -1))
        self._slots: dict[bytes, int] = {}
        new = f"{path}.new"
        self._fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(self._fd, 0, num_slots * _SLOT.size)
            self._map = mmap.mmap(self._fd, num_slots * _SLOT.size)
            for digest, past in pasts.items():
                self.write(digest, past)
            Path(new).replace(path)
        except OSError:
            os.close(self._fd)
            raise

    def write(self, digest: bytes, past: Past) -> None:
        slot = self._slots.get(digest)
        if slot is None:
            if not self._free and not self._grow():
                return
            slot = self._slots[digest] = self._free.pop()
        flags = past.in_flight | past.heard << 1 | past.suspect << 2 | past.tried << 3 | past.guilty << 4
        counts = (min(count, 255) for count in (past.crashes, past.unexplained, past.kills, past.age))
        _SLOT.pack_into(self._map, slot * _SLOT.size, digest, flags, *counts)

    def drop(self, digest: bytes) -> None:
        slot = self._slots.pop(digest, None)
        if slot is not None:
            self._map[slot * _SLOT.size : (slot + 1) * _SLOT.size] = bytes(_SLOT.size)
            self._free.append(slot)

    def end(self) -> None:
        """The engine ends in good order: the next one need know nothing."""
        self._map.close()
        os.close(self._fd)
        with suppress(OSError):
            Path(self._path).unlink()

    def _grow(self) -> bool:
        count = len(self._slots)
        try:
            os.posix_fallocate(self._fd, 0, 2 * count * _SLOT.size)
            self._map.resize(2 * count * _SLOT.size)
        except OSError as error:
            logger.warning("%s cannot grow (%s): not all requests can be told from one that breaks engines",
                           self._path, error.strerror)  # fmt: skip
            return False
        self._free = list(range(2 * count - 1, count - 1, -1))
        return True
