"""One engine as a client knows it: how far they have come with each other, what it says of itself, whether it answers.

Owned by client/engine.py. Outputs go straight to the ledger, which is told here when the engine can take requests and
when it is lost. Invariant: an engine is lost when its connection ends; that it does not answer is told, and no more.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Awaitable, Callable

from octavo.client.ledger import Ledger
from octavo.client.totals import Totals
from octavo.errors import ConfigError, EngineError, OctavoError
from octavo.wire.connection import SocketConnection
from octavo.wire.messages import (
    HEARTBEAT_S,
    QUIET_S,
    VERSION_MISMATCH,
    Bye,
    Draining,
    EngineInfo,
    Failed,
    Hello,
    Ping,
    Pong,
    Stats,
    ToClient,
    ToEngine,
    Welcome,
)

logger = logging.getLogger(__name__)

HOLD_S = 300.0
"""How long requests in flight wait for a lost engine to come back before they fail."""
HOLD_AFTER_DRAIN_S = 20.0
"""The same for an engine that was told to stop and did not finish them: somebody may be replacing it."""


class _State(enum.IntEnum):
    """How far this client has come with the engine; each includes those before it."""

    LOST = 0
    GREETED = 1
    """Hello is on its way; the engine answers when its model is loaded."""
    WELCOMED = 2
    """The engine holds a session; what the client needs of its model is loading."""
    ATTACHED = 3


class EngineConnection:
    """Implements ledger.Engine. `prepare(info)` loads what the client needs of the engine's model before the engine is
    attached, which `on_attached` is told; what it raises, or an engine of another protocol, is told to `on_fatal`."""

    def __init__(
        self,
        endpoint: str,
        ledger: Ledger,
        *,
        prepare: Callable[[EngineInfo], Awaitable[None]],
        on_attached: Callable[[], None],
        on_fatal: Callable[[OctavoError], None],
    ) -> None:
        self.info: EngineInfo | None = None
        """Of the engine that was attached last."""
        self.restarts = 0
        """Engines that took the place of a lost one."""
        self.draining = False
        self._ledger = ledger
        self._prepare = prepare
        self._on_attached = on_attached
        self._on_fatal = on_fatal
        self._socket = SocketConnection(
            endpoint,
            on_message=self._receive,
            on_outputs=ledger.receive,
            on_connected=self._greet,
            on_lost=self._lose,
        )
        self.send: Callable[[ToEngine], bool] = self._socket.send
        self._state = _State.LOST
        self._session = 0
        self._totals = Totals()
        self._asked: asyncio.Future[None] | None = None
        self._pinged: float | None = None
        """When the Ping was sent that is not answered yet."""
        self._silent = False
        """The log has said that the engine does not answer."""
        self._hold_until = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def attached(self) -> bool:
        """It has a loaded model, and so has the client."""
        return self._state is _State.ATTACHED

    @property
    def stats(self) -> Stats:
        """As of the last answer; counters of all engines so far."""
        return self._totals.stats

    def open(self) -> None:
        """Begin to look for the engine."""
        self._socket.open()
        self._tasks = [asyncio.create_task(self._beat(), name="octavo-heartbeat")]

    async def stop(self) -> None:
        """The client is about to leave: nothing is attached any more."""
        self._state = _State.LOST
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Leave in good order: the engine aborts what is in flight."""
        self.send(Bye())
        self._socket.close()

    async def refresh(self, timeout: float) -> None:
        """One question for all who ask while it is on its way."""
        if self._state < _State.WELCOMED:
            return
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self._pinged = None  # what an earlier Ping is told may be old by now
            self._ping()
        await asyncio.wait([self._asked], timeout=timeout)

    # -- what the connection tells

    def _greet(self) -> None:
        if self._socket.connected and self._state is _State.LOST and self.send(Hello()):
            self._state = _State.GREETED
            self._session += 1

    def _lose(self) -> None:
        logger.warning("lost the engine; %d requests in flight wait for it", len(self._ledger))
        was_draining, self.draining = self.draining, False
        self._hold_until = time.monotonic() + (HOLD_AFTER_DRAIN_S if was_draining else HOLD_S)
        self._state = _State.LOST
        self._pinged, self._silent = None, False
        self._totals.lose()
        self._told()
        self._ledger.lose(self)

    def _receive(self, message: ToClient) -> None:
        if isinstance(message, Failed):
            if message.code == VERSION_MISMATCH:
                self._on_fatal(ConfigError(message.message))
            else:
                self._ledger.receive_failure(message)
        elif isinstance(message, Pong):
            self._answered(message)
        elif isinstance(message, Draining):
            logger.info("the engine is shutting down")
            self.draining = True
            self._ledger.drain(self)
        elif isinstance(message, Welcome) and self._state is _State.GREETED:
            self._state = _State.WELCOMED
            self._ping()  # its pages, before anybody asks for them
            attaching = asyncio.create_task(self._attach(message.info, self._session), name="octavo-attach")
            self._tasks[1:] = [*(task for task in self._tasks[1:] if not task.done()), attaching]

    async def _attach(self, info: EngineInfo, session: int) -> None:
        """Load what is needed of the model, then have the ledger send what it holds."""
        try:
            await self._prepare(info)
        except OctavoError as error:
            self._on_fatal(error)
            return
        if self._session != session or self._state is not _State.WELCOMED:  # lost again meanwhile
            return
        if self.info is not None and self.info.instance != info.instance:
            self.restarts += 1
        self.info = info
        self._state = _State.ATTACHED
        count = 0 if self.draining else self._ledger.attach(self)
        logger.info("attached to engine %d, model %s; requests going on: %d", info.pid, info.model, count)
        self._on_attached()

    # -- heartbeats

    def _ping(self) -> None:
        """One question at a time: a stopped engine finds no heap of them."""
        if self._pinged is None and self.send(Ping()):
            self._pinged = time.monotonic()

    def _answered(self, pong: Pong) -> None:
        if self._silent:
            logger.info("the engine answers again")
        self._pinged, self._silent = None, False
        self._totals.take(pong.instance, pong.stats)
        self._told()

    def _told(self) -> None:
        """`stats` are new."""
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_result(None)

    async def _beat(self) -> None:
        """Questions while the engine holds a session, and a word in the log when they are not answered; an end to
        waiting when a lost engine does not come back."""
        while True:
            asleep = time.monotonic()
            await asyncio.sleep(HEARTBEAT_S)
            now = time.monotonic()
            late = now - asleep - HEARTBEAT_S
            if late > QUIET_S / 2:  # this process was stopped, or busy: what the engine said waits to be read
                logger.warning("this process stood still for %.1f s", late)
            elif self._state >= _State.WELCOMED:
                if self._pinged is not None and now - self._pinged > QUIET_S and not self._silent:
                    self._silent = True
                    count = len(self._ledger)
                    what = "the engine does not answer since %.1f s; its connection stands, %d requests go on waiting"
                    logger.warning(what, now - self._pinged, count)
                self._ping()
            elif self._state is _State.LOST and now > self._hold_until:
                self._ledger.fail_waiting(EngineError("the engine was lost and did not come back"))
