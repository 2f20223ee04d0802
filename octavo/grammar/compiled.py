"""Compiled grammars with the memory they hold: kept for the next request in least-recently-used order, within bytes.

All matchers of a grammar share what its lexer has found out so far, and add to it: a grammar of 60 bytes can come to
hold 200 MB. What each call added is measured around it, by what the process has allocated. Invariants: what is kept is
within CACHED_BYTES; a grammar over MAX_GRAMMAR_BYTES, or over its share where all together are over LIVE_BYTES, is
followed no further. Thread-safe.
"""

from __future__ import annotations

import ctypes
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from octavo.grammar.limits import MAX_GRAMMAR_BYTES, TOO_LARGE

CACHED_BYTES = 96 << 20
LIVE_BYTES = 384 << 20
"""Of all grammars, those that are followed and those that are kept."""
MIN_BYTES = 64 << 10
"""What any grammar counts for."""
BYTES_PER_CHAR = 16
MEASURED_S = 100e-6
"""Calls that take less find what was known before."""
BYTES_PER_S = 256 << 20
"""The most that a call adds in its processor time, twice what was seen: other threads allocate beside it. Where nobody
says how much is allocated, what is assumed."""
TRIM_BYTES = 32 << 20
"""After so much was let go of, what is free is given back to the system before the next grammar is compiled."""


class TooExpensive(Exception):
    """The grammar takes more memory or processor time than one may."""


class Compiled:
    """A grammar as llguidance has it. `num_bytes`: with all that its matchers have added."""

    def __init__(self, matcher: Any, text: str) -> None:
        self.matcher = matcher
        self.text = text
        self.num_bytes = MIN_BYTES + BYTES_PER_CHAR * len(text)


class CompiledGrammars:
    """`cached_bytes` 0 keeps none."""

    def __init__(self, cached_bytes: int = CACHED_BYTES) -> None:
        self.evictions = 0
        self._cached_bytes = cached_bytes
        self._kept: OrderedDict[str, Compiled] = OrderedDict()
        self._live: weakref.WeakSet[Compiled] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._let_go = 0

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """Of those that are kept and those that are followed."""
        with self._lock:
            return sum([compiled.num_bytes for compiled in self._live])

    def get(self, text: str) -> Compiled | None:
        with self._lock:
            compiled = self._kept.get(text)
            if compiled is not None:
                self._kept.move_to_end(text)
            return compiled

    def compile(self, text: str, make: Callable[[], Any]) -> Compiled:
        """`make`: llguidance's matcher at the start. Raises whatever it raises, TooExpensive."""
        if self._let_go > TRIM_BYTES:
            self._let_go = 0
            trim()
        began, before = time.thread_time(), allocated()
        compiled = Compiled(make(), text)
        with self._lock:
            self._live.add(compiled)
            self._kept[text] = compiled
            self._add(compiled, began, before)
        return compiled

    @contextmanager
    def watched(self, compiled: Compiled) -> Iterator[None]:
        """Around a call that may add to a grammar. Raises TooExpensive after it."""
        began, before = time.thread_time(), allocated()
        yield
        if time.thread_time() - began > MEASURED_S:
            with self._lock:
                self._add(compiled, began, before)

    def _add(self, compiled: Compiled, began: float, before: int | None) -> None:
        most = int((time.thread_time() - began) * BYTES_PER_S)
        now = allocated()
        compiled.num_bytes += most if before is None or now is None else min(max(now - before, 0), most)
        self._evict(compiled)
        if compiled.num_bytes > MAX_GRAMMAR_BYTES:
            raise TooExpensive(TOO_LARGE)
        live = list(self._live)
        if sum([each.num_bytes for each in live]) > LIVE_BYTES < compiled.num_bytes * len(live):
            raise TooExpensive("the grammars that are followed now take too much memory, and this one more than others")

    def _evict(self, grown: Compiled) -> None:
        kept = sum([each.num_bytes for each in self._kept.values()])
        if grown.num_bytes > MAX_GRAMMAR_BYTES and self._kept.get(grown.text) is grown:
            self._kept.move_to_end(grown.text, last=False)
        for gone in list(self._kept.values()):  # the oldest first
            if kept <= self._cached_bytes and gone.num_bytes <= MAX_GRAMMAR_BYTES:
                break
            del self._kept[gone.text]
            kept -= gone.num_bytes
            self._let_go += gone.num_bytes
            self.evictions += 1


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


@cache
def _mallinfo() -> Callable[[], _Mallinfo] | None:
    """glibc's, from 2.33 on; llguidance allocates there."""
    try:
        found = ctypes.PyDLL(None).mallinfo2  # 1 µs: too short to let go of the interpreter
    except (OSError, AttributeError):
        return None
    found.restype = _Mallinfo
    call: Callable[[], _Mallinfo] = found
    return call


def allocated() -> int | None:
    """Bytes that this process has allocated and not freed; None where nobody says."""
    mallinfo = _mallinfo()
    if mallinfo is None:
        return None
    info = mallinfo()
    return int(info.uordblks) + int(info.hblkhd)


def trim() -> None:
    """Gives what was freed back to the system, where that can be asked for."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
