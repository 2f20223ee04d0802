"""The engine as a process of its own: loads the model, then runs the engine loop until a signal.

Called by `octavo engine` and by the supervisor's child. Invariants: the socket exists before the model loads, so
clients may knock, but they are answered only when it is ready; after SIGTERM or SIGINT nothing new is taken, what runs
may end within the drain time-out, and a second signal ends the process at once.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
import traceback
from collections.abc import Callable
from types import FrameType

import psutil
import setproctitle

from octavo import env, log
from octavo.config.decide import decide
from octavo.config.engine import EngineConfig
from octavo.config.hardware import detect
from octavo.engine.assembly import build_loop
from octavo.engine.blame import Blame
from octavo.engine.faults import FaultyExecutor
from octavo.engine.lastwords import LastWords
from octavo.engine.loop import EngineLoop
from octavo.engine.watchdog import Watchdog
from octavo.executor import choose
from octavo.modelfiles.hub import fetch
from octavo.processes.signals import STOPPED_AT_ONCE, heeded
from octavo.wire.endpoint import INFLIGHT_SUFFIX, check_endpoint
from octavo.wire.plan import WorkerInfo
from octavo.wire.sockets import SocketTransport

logger = logging.getLogger(__name__)


def main(
    config: EngineConfig,
    endpoint: str,
    *,
    drain_timeout: float = 30.0,
    log_level: str = "info",
    log_format: log.Format = "text",
    crashed: bool = False,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve clients at `endpoint` (ipc://PATH) until SIGTERM or SIGINT. Must run in the main thread. `crashed`: the
    engine before this one is known to have broken down by itself.
    Raises OctavoError when the engine cannot start: a taken endpoint, a bad model file, too little memory."""
    gc.disable()  # while PyTorch is imported: what is made until the engine is ready lives until its end
    setproctitle.setproctitle("octavo-engine")
    log.setup("engine", log_level, log_format)
    stop = _Stop(drain_timeout)
    started = time.monotonic()
    transport = SocketTransport(endpoint)
    try:
        files = fetch(config)
        resolved = decide(config, detect(), files).resolved
        executor = choose.make(resolved, files)
        if faults := env.faults():
            executor = FaultyExecutor(executor, faults)
        try:
            worker = executor.start()
            for line in [*resolved.reasons, *worker.notes]:
                logger.info("%s", line)
            memory = psutil.Process().memory_info
            last_words = LastWords(endpoint)
            if words := last_words.of_predecessor():
                logger.error("the engine before this one broke down", extra=log.about(stacks=words))
            blame = Blame.inherit(check_endpoint(endpoint) + INFLIGHT_SUFFIX, crashed=crashed or bool(words))
            loop, _ = build_loop(
                resolved, files, worker, executor, transport, memory_mb=lambda: memory().rss / 2**20, blame=blame
            )
            last_words.begin()
            # Nor need the collector look at it ever again. Collecting first would take 0.15 s to find nearly nothing.
            gc.freeze()
            gc.enable()
            watchdog = Watchdog(resolved.options.watchdog_timeout, lambda: loop.busy_since, last_words.write)
            watchdog.start()
            logger.info("ready after %.1f s at %s: %s", time.monotonic() - started, endpoint, _summary(worker))
            stop.attach(loop, transport)
            if on_ready is not None:
                on_ready()
            try:
                loop.run(stop.due)
            except Exception:
                last_words.write(traceback.format_exc())
                raise
            watchdog.stop()
            last_words.end()
            blame.end()
        finally:
            executor.shutdown()
    finally:
        transport.close()


def _summary(worker: WorkerInfo) -> str:
    weights, pages = worker.weights_bytes / 2**20, worker.kv_bytes / 2**20
    return f"{worker.backend} on {worker.device}, {worker.dtype}, weights {weights:.0f} MiB, KV pages {pages:.0f} MiB"


class _Stop:
    """Turns signals into the end of the loop, which drains; `due` is asked before every turn."""

    def __init__(self, drain_timeout: float) -> None:
        self._drain_timeout = drain_timeout
        self._deadline: float | None = None
        self._loop: EngineLoop | None = None
        self._transport: SocketTransport | None = None
        for number in heeded():
            signal.signal(number, self._on_signal)

    def attach(self, loop: EngineLoop, transport: SocketTransport) -> None:
        """From now on there is something to drain."""
        self._loop, self._transport = loop, transport

    def due(self) -> bool:
        """True once the requests have had their time."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._loop is None or self._transport is None:  # still loading
            raise SystemExit(0)
        if self._deadline is not None:
            os._exit(STOPPED_AT_ONCE)
        self._deadline = time.monotonic() + self._drain_timeout
        self._loop.drain()
        self._transport.wake()
