"""The child process in which grammars are tried: compiled for the served vocabulary, and their first mask computed.

Started by grammar/checker.py, which it does not outlive. It says "" or why a grammar cannot be used; what takes too
much processor time, memory or stack ends it. Its stack is smaller than the engine's: what passes here passes there.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import threading
from pathlib import Path

import msgspec

from octavo.grammar.limits import CPU_S, Task
from octavo.grammar.matcher import GrammarError, Vocabulary
from octavo.modelfiles.files import ModelFiles
from octavo.processes import frames
from octavo.processes.lifeline import die_with_parent

MEMORY = 512 << 20
"""Bytes that trials may take beside the vocabulary."""
STACK = 2 << 20
MAX_MESSAGE = 400
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
    """Entry point of the child; its end of the socket is standard input and output."""
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
        vocabulary = Vocabulary.load(ModelFiles.at(task.path, task.name), task.vocab_size)
        verdict(vocabulary, 'start: %json {"type": "object"}')  # whatever is made once
        _limit_memory()
        frames.send(connection, b"ready")
        while True:
            grammar = frames.receive(connection).decode()
            # When the time is up the signal's default action ends this process, wherever it is.
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            message = verdict(vocabulary, grammar)
            signal.setitimer(signal.ITIMER_PROF, 0)
            frames.send(connection, message.encode())


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # where addresses cannot be limited
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
