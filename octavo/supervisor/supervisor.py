"""The supervisor's loop: starts engine and server, starts again what dies, ends both in order.

Called by `octavo serve`. It imports neither torch nor the server. Invariants: when `run` returns or raises, no child is
left; a signal is forwarded once, the second one ends everything at once.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from octavo import log
from octavo.config.decide import decide
from octavo.config.engine import EngineConfig, ServerConfig
from octavo.config.hardware import detect
from octavo.config.keys import with_keys_read
from octavo.config.resolve import choose_device
from octavo.config.tls import tls_context
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.hub import fetch
from octavo.modelfiles.hub.progress import console_progress
from octavo.processes.folder import RuntimeFolder
from octavo.processes.listen import at_path, bind, is_loopback, url
from octavo.processes.signals import STOP, STOPPED_AT_ONCE, heeded, let_through
from octavo.supervisor.child import Child
from octavo.supervisor.entry import EngineSpec, ServerSpec
from octavo.supervisor.title import set_title
from octavo.wire.endpoint import check_endpoint, endpoint_in, meeting_place

logger = logging.getLogger(__name__)

GRACE_S = 3.0
"""What a child gets beyond its drain time-out before it is killed."""


def run(config: EngineConfig, server: ServerConfig) -> int:
    """Serve until a signal; returns the exit code. Raises OctavoError for what is wrong before anything starts:
    a port in use, a model that cannot be found or read, options that contradict each other."""
    log.setup("supervisor", server.log_level, server.log_format)
    server = with_keys_read(server)
    is_tls = tls_context(server) is not None
    with ExitStack() as stack:
        if server.uds is not None:
            listeners = [stack.enter_context(at_path(server.uds, int(server.uds_mode, 8)))]
        else:
            listeners = [stack.enter_context(listener) for listener in bind(server.host, server.port)]
        address = url(listeners[0], is_tls)
        set_title(address, server.connect or config.model)
        if not server.api_key and not all(map(is_loopback, listeners)):
            logger.warning("anyone who reaches %s may use it; --api-key or --api-key-file closes it", address)
        files = folder = None
        if server.connect is not None:
            check_endpoint(server.connect)
            endpoint = server.connect
        else:
            files, config = _check_model(config, as_log=server.log_format == "json")
            folder = stack.enter_context(meeting_place())
            endpoint = endpoint_in(folder)
        fds = tuple(listener.fileno() for listener in listeners)
        children = [_server_child(server, endpoint, fds, files)]
        if folder is not None:
            children.append(_engine_child(config, server, folder))
        signals = stack.enter_context(_caught_signals())
        if folder is None:
            logger.info("waiting for an engine at %s; it is ready once that answers", endpoint)
        try:
            code = Supervisor(children, signals, server.drain_timeout, address).run()
            for listener in listeners:
                listener.close()
            return code
        finally:
            for child in children:
                child.kill()
                child.wait()


def _check_model(config: EngineConfig, *, as_log: bool) -> tuple[ModelFiles, EngineConfig]:
    """What can be known of the model and the options before a process is started for them. → and the options with the
    GPU that was chosen: an engine that starts again because its GPU failed does not go on without one."""
    hardware = detect()
    choose_device(config, hardware)  # before a model is fetched
    files = fetch(config, console_progress(as_log=as_log))
    device = decide(config, hardware, files).resolved.device
    return files, config if device == "cpu" else msgspec.structs.replace(config, device=device)


def _server_child(server: ServerConfig, endpoint: str, fds: tuple[int, ...], files: ModelFiles | None) -> Child:
    model = None if files is None else (files.name, files.address)

    def make_spec(ready_fd: int) -> ServerSpec:
        return ServerSpec(
            parent=os.getpid(), endpoint=endpoint, config=server, ready_fd=ready_fd, listen_fds=fds, model=model
        )

    return Child("server", make_spec, fds=fds)


def _engine_child(config: EngineConfig, server: ServerConfig, folder: RuntimeFolder) -> Child:
    def make_spec(ready_fd: int) -> EngineSpec:
        folder.restore()
        return EngineSpec(
            parent=os.getpid(),
            endpoint=endpoint_in(folder),
            config=config,
            ready_fd=ready_fd,
            drain_timeout=server.drain_timeout,
            log_level=server.log_level,
            log_format=server.log_format,
            crashed=child.crashed,
        )

    child = Child("engine", make_spec)
    return child


@contextmanager
def _caught_signals() -> Iterator[int]:
    """→ a descriptor that gives one byte per signal, its number; ignored ones stay so. Also SIGCHLD: a child that dies
    wakes the loop."""
    let_through()
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (*heeded(), signal.SIGCHLD)}
    old_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


class Supervisor:
    """`children`: the server and, unless it runs elsewhere, the engine, in the order in which they are to stop."""

    def __init__(self, children: list[Child], signals: int, drain_timeout: float, address: str) -> None:
        self._children = children
        self._signals = signals
        self._patience = [drain_timeout + GRACE_S, *(GRACE_S for _ in children[1:])]
        self._address = address
        self._readable: set[int | None] = set()
        self._stopping = self._was_ready = False
        self._exit_code = 0

    def run(self) -> int:
        """Until all children have stopped for good; → exit code."""
        for child in reversed(self._children):
            child.start()
        while True:
            for number in self._wait():
                if number not in STOP:
                    continue
                if self._stopping:
                    logger.warning("second signal: stopping at once")
                    return STOPPED_AT_ONCE
                logger.info("%s: finishing what runs", signal.Signals(number).name)
                self._stopping = True
            for child in self._children:
                if child.ready_fd in self._readable and child.check_ready():
                    self._say_ready(child)
                self._look_after(child)
            if self._stopping and self._stop_in_order():
                return self._exit_code

    def _say_ready(self, child: Child) -> None:
        if self._was_ready:
            logger.info("the %s is back after %.1f s", child.name, child.uptime)
        elif all(each.ready for each in self._children):
            self._was_ready = True
            logger.info("ready after %.1f s: %s", child.uptime, self._address)

    def _look_after(self, child: Child) -> None:
        code = child.reap()
        if code is not None:
            self._stopping, self._exit_code = True, code
        child.tick()

    def _stop_in_order(self) -> bool:
        """Tell the next child to stop once the one before it is gone; True when none is left."""
        for child, patience in zip(self._children, self._patience, strict=True):
            if self._exit_code:
                patience = GRACE_S
            child.stop(patience)
            if child.alive:
                return False
        return True

    def _wait(self) -> list[int]:
        """Sleep until a signal, a child's report or a planned event; → the signals' numbers."""
        events = [at for child in self._children if (at := child.next_event) is not None]
        timeout = max(min(events) - time.monotonic(), 0.0) if events else None
        fds = [self._signals, *(fd for child in self._children if (fd := child.ready_fd) is not None)]
        self._readable = set(select.select(fds, [], [], timeout)[0])
        return list(os.read(self._signals, 256)) if self._signals in self._readable else []
