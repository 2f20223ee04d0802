"""A server's end of the process in which grammars are tried: started with the first one, replaced when it is lost.

Owns the process and its socket. Invariant: every trial that was asked for is answered, or raises LostProcess when the
process ends first. Belongs to one event loop, on whose back nothing waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess

import msgspec

from octavo.errors import Unavailable
from octavo.grammar.limits import Task
from octavo.grammar.trial import ANSWERED, ASKED
from octavo.modelfiles.files import ModelFiles
from octavo.processes import frames
from octavo.processes.spawn import spawn

START_S, WALL_S = 60.0, 20.0
"""The start of a process; one trial, which the process itself ends before."""

Answer = tuple[str, int]
"""(why the grammar cannot be used, or nothing; how the trial's own process ended: 0, or a negative signal)."""


class LostProcess(Exception):
    """It ended before it answered."""


class TrialProcess:
    def __init__(self, files: ModelFiles, vocab_size: int) -> None:
        self._files = files
        self._vocab_size = vocab_size
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._starting, self._sending = asyncio.Lock(), asyncio.Lock()
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._child is None else self._child.pid

    async def answer(self, grammar: bytes, seconds: float) -> Answer:
        """`seconds`: of processor time. Raises LostProcess, also when nothing comes, Unavailable."""
        async with self._starting:
            await self._begin()
        self._number += 1
        number = self._number
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(ASKED.pack(number, seconds) + grammar)
            return await asyncio.wait_for(answer, WALL_S)
        except (asyncio.TimeoutError, OSError):
            await self.close()
            raise LostProcess from None
        finally:
            self._asked.pop(number, None)

    async def close(self) -> None:
        """Ends the process; idempotent."""
        child, self._child = self._child, None
        reader, self._reader = self._reader, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if reader is not None:
            reader.cancel()
        self._lose()
        if child is None:
            return
        if child.poll() is None:
            child.kill()
        await asyncio.to_thread(child.wait)

    async def _begin(self) -> None:
        """A process that has loaded the vocabulary."""
        if self._reader is not None and not self._reader.done():
            return
        await self.close()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            end = theirs.fileno()
            self._child = spawn("octavo.grammar.trial", stdin=end, stdout=end, stderr=subprocess.DEVNULL)
        self._socket = ours
        task = Task(parent=os.getpid(), name=self._files.name, path=self._files.address, vocab_size=self._vocab_size)
        try:
            await asyncio.wait_for(frames.ask(ours, msgspec.json.encode(task)), START_S)
        except (asyncio.TimeoutError, OSError, EOFError):
            await self.close()
            raise Unavailable("grammars cannot be checked right now; try again soon", retry_after=1) from None
        except asyncio.CancelledError:
            await self.close()
            raise
        self._reader = asyncio.create_task(self._read_all(ours), name="octavo-grammar-verdicts")

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            if self._socket is None:
                raise OSError
            await asyncio.get_running_loop().sock_sendall(self._socket, frames.frame(data))

    async def _read_all(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                while True:
                    answered = await frames.next_of(connection)
                    number, ended = ANSWERED.unpack_from(answered)
                    said = answered[ANSWERED.size :].decode(errors="replace")
                    answer = self._asked.get(number)
                    if answer is not None and not answer.done():
                        answer.set_result((said, ended))
        finally:
            if self._socket is connection:
                self._lose()

    def _lose(self) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(LostProcess())
