"""Tries a grammar before a request is queued, in a child process that may crash or take too long. Used by the clients.

Owns one child (grammar/trial.py), started with the first grammar and replaced when it ends, and what is known of the
grammars tried so far. Invariants: nothing here waits on the event loop's back; a grammar that breaks the child is a
RequestError for its own request alone; what is remembered is bounded. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
from collections import OrderedDict

import msgspec

from octavo.errors import QueueFull, RequestError, Unavailable
from octavo.grammar.limits import CPU_S, Task
from octavo.modelfiles.files import ModelFiles
from octavo.processes import frames
from octavo.processes.spawn import spawn

MAX_WAITING = 64
"""Grammars that wait for their trial; more are refused."""
START_S, WALL_S = 60.0, 20.0
"""The start of a child; one trial, on a machine so busy that its processor time takes long to come."""
REMEMBERED_BYTES = 1 << 20
_ENTRY_BYTES = 300
"""What an entry takes beside its message."""


class GrammarChecker:
    """For the tokenizer of one model with `vocab_size` logits."""

    def __init__(self, files: ModelFiles, vocab_size: int) -> None:
        self._files = files
        self._vocab_size = vocab_size
        self._known: OrderedDict[bytes, str] = OrderedDict()
        """Digest of a grammar → why it cannot be used, or nothing."""
        self._bytes = 0
        self._trials: dict[bytes, asyncio.Task[str]] = {}
        self._turn = asyncio.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return None if self._child is None else self._child.pid

    @property
    def remembered_bytes(self) -> int:
        return self._bytes

    async def check(self, grammar: str) -> None:
        """Raises RequestError with param "grammar", QueueFull."""
        data = grammar.encode()
        key = hashlib.sha256(data).digest()
        message = self._known.get(key)
        if message is None:
            trial = self._trials.get(key)
            if trial is None:
                if len(self._trials) >= MAX_WAITING:
                    raise QueueFull("too many grammars wait to be checked; try again soon", retry_after=1)
                trial = self._trials[key] = asyncio.create_task(self._try(key, data), name="octavo-grammar-trial")
            message = await asyncio.shield(trial)  # others may wait for the same
        else:
            self._known.move_to_end(key)
        if message:
            raise RequestError(f"the grammar cannot be used: {message}", param="grammar")

    async def close(self) -> None:
        self._closed = True
        for trial in list(self._trials.values()):
            trial.cancel()
        await asyncio.gather(*self._trials.values(), return_exceptions=True)
        await self._end()

    async def _try(self, key: bytes, data: bytes) -> str:
        try:
            async with self._turn:
                message = await self._answer(data)
        finally:
            del self._trials[key]
        self._known[key] = message
        self._bytes += _ENTRY_BYTES + len(message)
        while self._bytes > REMEMBERED_BYTES:
            self._bytes -= _ENTRY_BYTES + len(self._known.popitem(last=False)[1])
        return message

    async def _answer(self, data: bytes) -> str:
        """What the child says, or why it is no more. Raises Unavailable when no child can be had."""
        for is_last in (False, True):
            timed_out = False
            try:
                await self._begin()
                return (await asyncio.wait_for(self._asked(data), WALL_S)).decode()
            except (asyncio.TimeoutError, OSError, EOFError) as error:
                timed_out = isinstance(error, asyncio.TimeoutError)
                code = await self._end()
            except asyncio.CancelledError:
                await self._end()
                raise
            if self._closed:
                raise Unavailable("the server is shutting down", retry_after=1)
            if timed_out or code == -signal.SIGPROF:
                return f"it takes more than {CPU_S:g} s to compile; make it smaller"
            if code != -signal.SIGKILL or is_last:  # else somebody killed it, which is not the grammar's fault
                break
        return "it needs too much memory or is nested too deeply; make it smaller"

    async def _begin(self) -> None:
        """A child that has loaded the vocabulary."""
        if self._child is not None and self._child.poll() is None:
            return
        await self._end()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            end = theirs.fileno()
            self._child = spawn("octavo.grammar.trial", stdin=end, stdout=end, stderr=subprocess.DEVNULL)
        self._socket = ours
        task = Task(parent=os.getpid(), name=self._files.name, path=self._files.address, vocab_size=self._vocab_size)
        try:
            await asyncio.wait_for(self._asked(msgspec.json.encode(task)), START_S)
        except (asyncio.TimeoutError, OSError, EOFError):
            await self._end()
            raise Unavailable("grammars cannot be checked right now; try again soon", retry_after=1) from None

    async def _end(self) -> int | None:
        """→ how the child ended; it is killed if it has not."""
        child, self._child = self._child, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0)
        if child.returncode is None:
            await asyncio.sleep(0.01)  # its socket closes a moment before it is gone
            if child.poll() is None:
                child.kill()
        return await asyncio.to_thread(child.wait)

    async def _asked(self, data: bytes) -> bytes:
        """The child's answer."""
        assert self._socket is not None
        return await frames.ask(self._socket, data)
