"""Tries grammars before their requests are queued, in processes that may crash or take too long; fair to all keys.

Owns the trials (grammar/trials.py), who is next, and what is known of the grammars tried so far. A grammar has little
time at first; one that needs more waits for a place among its like. Invariants: a key's trial waits for at most one
other of each other key; a grammar that breaks a trial is a RequestError for its own requests alone; what waits and what
is remembered is bounded. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections import Counter, OrderedDict

from octavo.errors import QueueFull, RequestError, Unavailable
from octavo.fair import FairGate
from octavo.grammar.limits import CPU_S, EXPENSIVE, SHORT_CPU_S, TOO_LARGE
from octavo.grammar.trials import LostProcess, TrialProcess
from octavo.modelfiles.files import ModelFiles

MAX_WAITING, MAX_WAITING_BYTES = 64, 16 << 20
"""Grammars of one key that wait for their trial or are in it; more are refused."""
SHORT_TRIALS, LONG_TRIALS = 2, 1
"""At once."""
REMEMBERED_BYTES = 1 << 20
_ENTRY_BYTES = 300
"""What an entry takes beside its message."""
_TOO_SLOW = f"it takes more than {CPU_S:g} s to compile; make it smaller"
_TOO_LARGE = "it needs too much memory or is nested too deeply; make it smaller"

Known = tuple[str, bool]
"""(why a grammar cannot be used, or nothing; whether it took long to know)."""


class GrammarChecker:
    """For the tokenizer of one model with `vocab_size` logits."""

    def __init__(self, files: ModelFiles, vocab_size: int) -> None:
        self._process = TrialProcess(files, vocab_size)
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        """By the digest of a grammar."""
        self._bytes = 0
        self._trials: dict[tuple[str, bytes], asyncio.Task[Known]] = {}
        self._num_waiting: Counter[str] = Counter()
        self._bytes_waiting: Counter[str] = Counter()
        self._short, self._long = FairGate(SHORT_TRIALS), FairGate(LONG_TRIALS)
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process that tries, while there is one."""
        return self._process.pid

    @property
    def num_waiting(self) -> int:
        return len(self._trials)

    @property
    def remembered_bytes(self) -> int:
        return self._bytes

    async def check(self, grammar: str, owner: str = "") -> bool:
        """Whether it takes long to compile. `owner`: the key whose request it is. Raises RequestError with param
        "grammar", QueueFull."""
        data = grammar.encode()
        key = hashlib.sha256(data).digest()
        known = self._known.get(key)
        if known is None:
            known = await asyncio.shield(self._trial(owner, key, data))  # others may wait for the same
        else:
            self._known.move_to_end(key)
        if known[0]:
            code = EXPENSIVE if known[0] in (_TOO_SLOW, _TOO_LARGE, TOO_LARGE) else None
            raise RequestError(f"the grammar cannot be used: {known[0]}", param="grammar", code=code)
        return known[1]

    async def close(self) -> None:
        self._closed = True
        for trial in list(self._trials.values()):
            trial.cancel()
        await asyncio.gather(*self._trials.values(), return_exceptions=True)
        await self._process.close()

    def _trial(self, owner: str, key: bytes, data: bytes) -> asyncio.Task[Known]:
        trial = self._trials.get((owner, key))
        if trial is None:
            full = self._num_waiting[owner] >= MAX_WAITING
            if full or (self._bytes_waiting[owner] and self._bytes_waiting[owner] + len(data) > MAX_WAITING_BYTES):
                raise QueueFull("too many grammars wait to be checked; try again soon", retry_after=1)
            self._num_waiting[owner] += 1
            self._bytes_waiting[owner] += len(data)
            trial = asyncio.create_task(self._try(owner, key, data), name="octavo-grammar-trial")
            self._trials[owner, key] = trial
            trial.add_done_callback(lambda _: self._tried(owner, key, len(data)))
        return trial

    def _tried(self, owner: str, key: bytes, num_bytes: int) -> None:
        del self._trials[owner, key]
        for counter, amount in ((self._num_waiting, 1), (self._bytes_waiting, num_bytes)):
            counter[owner] -= amount
            if not counter[owner]:
                del counter[owner]

    async def _try(self, owner: str, key: bytes, data: bytes) -> Known:
        async with self._short.entered(owner):
            known = await self._verdict(data, SHORT_CPU_S), False
        if known[0] == _TOO_SLOW:
            async with self._long.entered(owner):
                known = await self._verdict(data, CPU_S), True
        if key not in self._known:
            self._known[key] = known
            self._bytes += _ENTRY_BYTES + len(known[0])
        while self._bytes > REMEMBERED_BYTES:
            self._bytes -= _ENTRY_BYTES + len(self._known.popitem(last=False)[1][0])
        return known

    async def _verdict(self, data: bytes, seconds: float) -> str:
        """Raises Unavailable when there is none to be had."""
        ended = 0
        for _ in range(2):
            try:
                message, ended = await self._process.answer(data, seconds)
            except LostProcess:
                continue  # somebody killed it, which is not the grammar's fault
            if ended == 0:
                return message
            if ended == -signal.SIGPROF:
                return _TOO_SLOW
            if ended != -signal.SIGKILL:
                break
        if ended == 0 or self._closed:
            raise Unavailable("grammars cannot be checked right now; try again soon", retry_after=1)
        return _TOO_LARGE
