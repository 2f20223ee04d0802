"""The process in which grammars are tried: compiled for the served vocabulary, and their first mask computed.

It loads the vocabulary once; each trial is a child of it, so that several may run and one that takes too much processor
time, memory or stack ends alone. Started by the client of an engine, which it does not outlive. Its stack is smaller
than the engine's: what passes here passes there.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import resource
import selectors
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import msgspec

from octavo.grammar.limits import Task
from octavo.grammar.matcher import GrammarError, Vocabulary
from octavo.modelfiles.files import ModelFiles
from octavo.processes import frames
from octavo.processes.lifeline import die_with_parent

MEMORY = 384 << 20
"""Bytes that a trial may take beside the vocabulary, while it lasts."""
STACK = 2 << 20
WALL_S = 15.0
"""One trial, on a machine so busy that its processor time takes long to come."""
MAX_MESSAGE = 400
HARD_NICE = 5
ASKED = struct.Struct("<If")
"""Before a grammar: the trial's number, seconds of processor time."""
ANSWERED = struct.Struct("<Ii")
"""Before a verdict: the trial's number, how the trial's process ended (a negative signal, or 0)."""
_PLACE = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")


def verdict(vocabulary: Vocabulary, grammar: str) -> str:
    """Why a grammar cannot be used, or nothing. In the caller's own process: for clients that have no other."""
    try:
        vocabulary.matcher(grammar).mask()
    except GrammarError as error:
        return readable(str(error), grammar)
    return ""


def readable(message: str, grammar: str) -> str:
    """llguidance's message without the excerpt of the grammar, and with a place only where that says something."""
    if "NoExtensionBias" in message:
        return "no text matches it"
    first = message.split("\n   ", 1)[0].strip()
    place = _PLACE.match(first)
    if place:
        first = first[place.end() :]
        if grammar.count("\n") > 1 and not grammar.startswith("{"):
            first += f" (line {place[1]}, column {place[2]})"
    first = re.sub(r"^failed to compile JSON schema: ", "", first).replace("\n", " ")
    return first[:MAX_MESSAGE] or "llguidance does not accept it"


def main() -> None:
    """Entry point of the process; its end of the socket is standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    threading.stack_size(STACK)
    worker = threading.Thread(target=_serve, args=(connection,), name="octavo-grammar", daemon=True)
    worker.start()
    worker.join()


def _serve(connection: socket.socket) -> None:
    import setproctitle

    setproctitle.setproctitle("octavo-grammar")
    with contextlib.suppress(EOFError, OSError):
        task = msgspec.json.decode(frames.receive(connection), type=Task)
        die_with_parent(task.parent)
        vocabulary = Vocabulary.load(ModelFiles.at(task.path, task.name), task.vocab_size, cached_bytes=0)
        verdict(vocabulary, 'start: %json {"type": "object"}')  # whatever is made once
        gc.freeze()
        _limit_memory()
        frames.send(connection, b"ready")
        _Trials(vocabulary, connection).run()


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # where addresses cannot be limited
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


class _Trial:
    """A child process: `pipe` brings its verdict, and ends with it."""

    def __init__(self, number: int, pid: int, pipe: int) -> None:
        self.number = number
        self.pid = pid
        self.pipe = pipe
        self.said = bytearray()
        self.deadline = time.monotonic() + WALL_S


class _Trials:
    """Those that run: begun as they are asked for, answered as they end."""

    def __init__(self, vocabulary: Vocabulary, connection: socket.socket) -> None:
        self._vocabulary = vocabulary
        self._connection = connection
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._running: set[_Trial] = set()

    def run(self) -> None:
        """Until the socket ends."""
        while True:
            now = time.monotonic()
            nearest = min((trial.deadline for trial in self._running), default=None)
            for key, _ in self._selector.select(None if nearest is None else max(nearest - now, 0)):
                if key.data is None:
                    asked = frames.receive(self._connection)
                    number, seconds = ASKED.unpack_from(asked)
                    self._begin(number, seconds, asked[ASKED.size :].decode())
                else:
                    self._hear(key.data)
            for trial in self._running:
                if time.monotonic() > trial.deadline:
                    os.kill(trial.pid, signal.SIGPROF)

    def _begin(self, number: int, seconds: float, grammar: str) -> None:
        ours, theirs = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            self._try(parent, theirs, seconds, grammar)
        os.close(theirs)
        trial = _Trial(number, pid, ours)
        self._running.add(trial)
        self._selector.register(ours, selectors.EVENT_READ, trial)

    def _try(self, parent: int, pipe: int, seconds: float, grammar: str) -> None:
        """In the child, which ends here, by itself or by a signal."""
        try:
            die_with_parent(parent)
            self._connection.close()
            if seconds >= 1:
                os.nice(HARD_NICE)
            # When the time is up the signal's default action ends this process, wherever it is.
            signal.setitimer(signal.ITIMER_PROF, seconds)
            message = verdict(self._vocabulary, grammar)
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(pipe, message.encode())
        except BaseException:
            os.abort()
        os._exit(0)

    def _hear(self, trial: _Trial) -> None:
        part = os.read(trial.pipe, 1 << 16)
        trial.said += part
        if part:
            return
        self._selector.unregister(trial.pipe)
        os.close(trial.pipe)
        self._running.discard(trial)
        ended = os.waitstatus_to_exitcode(os.waitpid(trial.pid, 0)[1])
        frames.send(self._connection, ANSWERED.pack(trial.number, ended) + trial.said)
