"""Runs plans in a process of its own, which all that it is told reaches as encoded messages: the executor of ranks that
share no memory with the engine.

Owns the process and its socket. Invariants: results and failures come in the order of the plans; a process that ends by
itself is DeviceLost, which ends the engine.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress

import msgspec

from octavo.config.resolve import ResolvedConfig
from octavo.errors import DeviceLost
from octavo.executor.messages import Answer, Order, Start
from octavo.modelfiles.files import ModelFiles
from octavo.processes import frames
from octavo.processes.spawn import spawn
from octavo.rank import Rank
from octavo.wire.plan import Masks, Plan, Result, WorkerInfo

END_S = 10.0
"""How long a process may take to end when it is no longer needed."""


class ProcessExecutor:
    """Implements executor.base.Executor. `depth` as for the worker in the engine's own process."""

    def __init__(self, resolved: ResolvedConfig, files: ModelFiles, depth: int = 1, rank: Rank | None = None) -> None:
        self.depth = depth
        self._rank = rank or Rank.alone(resolved.device)
        self._resolved, self._files = resolved, files
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Answer).decode
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Of the worker's process, while there is one."""
        return None if self._child is None else self._child.pid

    def start(self) -> WorkerInfo:
        """Loads the model. Raises OctavoError (ModelFileError, OutOfMemory, ...), DeviceLost when the process ends."""
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._child = spawn("octavo.executor.child", stdin=theirs.fileno())
        files = self._files
        start = Start(self._resolved, files.address, files.name, self.depth, self._rank, os.getpid())
        self._send(Order(start=start))
        info = self._receive().info
        assert info is not None
        return info

    def submit(self, plan: Plan) -> None:
        self._send(Order(plan=plan))

    def masks(self, masks: Masks) -> None:
        self._send(Order(masks=masks))

    def collect(self) -> Result:
        """Raises StepFailed for whatever the oldest plan raised, DeviceLost."""
        self._send(Order(collect=True))
        result = self._receive().result
        assert result is not None
        return result

    def shutdown(self) -> None:
        """Idempotent: the process ends when nobody speaks to it any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._child is not None:
            child, self._child = self._child, None
            try:
                child.wait(END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _send(self, order: Order) -> None:
        assert self._socket is not None, "the executor has not been started"
        try:
            frames.send(self._socket, self._encode(order))
        except OSError as error:
            raise self._ended() from error

    def _receive(self) -> Answer:
        """Raises what the answer says."""
        assert self._socket is not None
        try:
            answer = self._decode(frames.receive(self._socket))
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if answer.failure is not None:
            raise answer.failure.error()
        return answer

    def _ended(self) -> DeviceLost:
        how = None
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                how = self._child.wait(END_S)
        return DeviceLost(f"the worker's process has ended (status {how})")
