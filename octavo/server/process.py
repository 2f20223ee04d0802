"""The server process: the web application on a socket, from its first log line to its drained end.

It serves on bound sockets that it inherits, which begin to listen once the model's tokenizer has been tried. On SIGTERM
or SIGINT it stays reachable: new work is refused with 503, what runs may finish within the drain time-out, the rest
gets an error event; then it leaves with 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from octavo import log
from octavo.client.engine import EngineClient
from octavo.client.trial import ModelTrial
from octavo.config import ServerConfig
from octavo.config.tls import tls_context
from octavo.errors import OctavoError
from octavo.modelfiles.files import ModelFiles
from octavo.processes.listen import BACKLOG, begin, url
from octavo.server.app import create_app
from octavo.server.faces.openai.errors import error_body
from octavo.server.http.connection import Bounds, Connection
from octavo.server.routes import SITE

logger = logging.getLogger("octavo.server")

CLOSE_S = 2
"""How long connections get to take their last bytes after the drain."""
SPARE_DESCRIPTORS = 64
"""For everything that is no connection."""


def main(
    config: ServerConfig,
    endpoint: str,
    fds: tuple[int, ...],
    model: ModelFiles | None = None,
    on_attached: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal. `endpoint`: the engine's; `fds`: bound sockets to take over; `model`: what the engine
    is expected to serve; `on_attached`: called whenever there is an engine whose model answers from then on.

    Raises ConfigError when an option is wrong, and what makes the engine one that can never be served.
    """
    import setproctitle

    setproctitle.setproctitle("octavo-server")
    log.setup("server", config.log_level, config.log_format)
    listeners = [socket.socket(fileno=fd) for fd in fds]
    trial = None if model is None else ModelTrial(model)  # beside what comes now
    server: DrainingServer | None = None

    def fatal(error: OctavoError) -> None:
        assert server is not None
        server.fatal = error
        server.should_exit = True

    app = create_app(EngineClient(endpoint, on_fatal=fatal, model=model, on_attached=on_attached), config, SITE)
    server = DrainingServer(app, config)
    _allow_descriptors(config.max_connections + SPARE_DESCRIPTORS)
    if trial is not None:
        with trial:
            trial.finish()
    begin(listeners)
    where = [url(listener, is_tls=config.ssl_certfile is not None) for listener in listeners]
    logger.info("listening on %s", " and ".join(where))
    server.run(sockets=listeners)
    if server.fatal is not None:
        raise server.fatal


def _allow_descriptors(wanted: int) -> None:
    """Each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            logger.warning("only %d files may be open, fewer than --max-connections needs; see ulimit -n", allowed)


class DrainingServer(uvicorn.Server):
    """uvicorn whose signals first drain the work, with the listening socket still open."""

    def __init__(self, app: Starlette, config: ServerConfig) -> None:
        options = uvicorn.Config(
            app,
            loop="uvloop",
            http=partial(Connection, Bounds.of(config), error_body),  # type: ignore[arg-type]
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=config.keep_alive_timeout,
            timeout_graceful_shutdown=CLOSE_S,
        )
        options.load()
        options.ssl = tls_context(config)
        super().__init__(options)
        self.fatal: OctavoError | None = None
        self._app = app
        self._drain_timeout = config.drain_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        # What is alive now lives until the end: the garbage collector need not look at it amid the streams.
        gc.collect()
        gc.freeze()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Runs in the signal handler: the first signal begins the drain, the second ends it."""
        if self._loop is None or self._drain is not None:
            self.force_exit = True
            self.should_exit = True
            if self._loop is None:
                sys.exit(0)
            return
        self._loop.call_soon_threadsafe(self._begin_drain, signal.Signals(sig).name)

    def _begin_drain(self, name: str) -> None:
        if self._drain is None:
            self._drain = asyncio.ensure_future(self._drained(name))

    async def _drained(self, name: str) -> None:
        inflight = self._app.state.serving.inflight
        logger.info("%s: draining, %d requests in flight", name, len(inflight))
        cut = await inflight.drain(self._drain_timeout)
        if cut:
            logger.warning("%d requests were cut off after %g s", cut, self._drain_timeout)
        self.should_exit = True
