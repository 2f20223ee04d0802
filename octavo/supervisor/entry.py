"""What runs in a child of the supervisor: reads its specification from standard input and becomes engine or server.

The specification comes by a pipe, so that keys show neither in `ps` nor in the environment. Invariant: a failure that a
user can mend is one line on standard error and the exit code of its error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress

import msgspec

from octavo import log
from octavo.config.engine import EngineConfig, ServerConfig
from octavo.errors import OctavoError
from octavo.modelfiles.files import ModelFiles
from octavo.processes.lifeline import die_with_parent
from octavo.processes.signals import obey_parent


class EngineSpec(msgspec.Struct, tag="engine", frozen=True, kw_only=True):
    parent: int
    endpoint: str
    config: EngineConfig
    ready_fd: int
    """The child writes STARTED there once it does its work as far as others let it, READY once it answers."""
    drain_timeout: float
    log_level: str
    log_format: log.Format = "text"
    crashed: bool = False
    """The engine before broke down by itself."""


class ServerSpec(msgspec.Struct, tag="server", frozen=True, kw_only=True):
    parent: int
    endpoint: str
    config: ServerConfig
    ready_fd: int
    listen_fds: tuple[int, ...]
    """The bound TCP sockets."""
    model: tuple[str, str] | None = None
    """Name and address of what the engine will serve, where that is known."""


STARTED, READY = b"s", b"r"
"""What a child reports."""
Spec = EngineSpec | ServerSpec


def encoded(spec: Spec) -> bytes:
    """As JSON of ASCII alone, since a path may hold bytes that are no text."""
    return json.dumps(msgspec.to_builtins(spec)).encode()


def decoded(data: bytes) -> Spec:
    return msgspec.convert(json.loads(data), type=Spec)  # type: ignore[no-any-return]


def main() -> None:
    """Entry point of a child process."""
    obey_parent()
    spec = decoded(sys.stdin.buffer.read())
    die_with_parent(spec.parent)

    os.set_inheritable(spec.ready_fd, False)  # its end tells of this process's

    def report(word: bytes) -> None:
        with suppress(BrokenPipeError):  # whoever heard that it is ready listens no more
            os.write(spec.ready_fd, word)

    try:
        sys.exit(_engine(spec, report) if isinstance(spec, EngineSpec) else _server(spec, report))
    except OctavoError as error:
        log.last_words(error.message)
        sys.exit(error.exit_code)


def _engine(spec: EngineSpec, report: Callable[[bytes], None]) -> int:
    from octavo.engine import process

    process.main(
        spec.config,
        spec.endpoint,
        drain_timeout=spec.drain_timeout,
        log_level=spec.log_level,
        log_format=spec.log_format,
        crashed=spec.crashed,
        on_ready=lambda: report(READY),
    )
    return 0


def _server(spec: ServerSpec, report: Callable[[bytes], None]) -> int:
    from octavo.server import process

    report(STARTED)
    model = None if spec.model is None else ModelFiles.at(spec.model[1], spec.model[0])
    process.main(spec.config, spec.endpoint, spec.listen_fds, model, lambda: report(READY))
    return 0


if __name__ == "__main__":
    main()
