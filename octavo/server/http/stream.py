"""An answer as server-sent events, made from a request's work delta by delta.

Invariants: a stream never just ends: a failure before the first event is a plain 4xx or 5xx, a later one a last event
that tells it; whatever happens, the engine's work is closed. A reader that takes nothing for the send time-out is
dropped (the transport holds at most its 64 KiB meanwhile).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.errors import ApiError, ClientGone
from octavo.server.core.account import Account
from octavo.server.core.errors import told
from octavo.server.core.inflight import InFlight, Watch
from octavo.server.core.work import Work
from octavo.server.http.sse import CONNECTION, KEEP_ALIVE
from octavo.types import Delta

logger = logging.getLogger("octavo.server")

FIRST_EVENT_S = 1.0
"""How long the status line waits for the first event, so that what the engine refuses at once is a plain 4xx."""
SILENCE_S = 10.0
"""How long nothing comes before the first token until the client is told that the stream lives: a long prompt takes its
time, and clients and proxies give up on silence."""


@dataclass(frozen=True)
class Source:
    """What a stream comes from."""

    start: Callable[[], Awaitable[Work]]
    account: Account
    inflight: InFlight


class EventStream(Response):
    """Awaits `start` first: what that refuses is a plain answer. A face says in bytes what has come: whole records,
    several may be joined."""

    work: Work
    """Once it has started."""

    def __init__(self, source: Source) -> None:
        super().__init__(None, media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._account, self._inflight, self._start = source.account, source.inflight, source.start
        self._account.is_streamed = True
        self._sends = False

    # -- a face's part

    def chunk(self, prompt_index: int, delta: Delta) -> bytes:
        """May be empty."""
        raise NotImplementedError

    def is_long(self, prompt_index: int, delta: Delta) -> bool:
        """`chunk` will take long for it: it is to be called in a thread."""
        return False

    def wait(self) -> bytes:
        """A sign of life, before anything has come."""
        return KEEP_ALIVE

    def end(self) -> bytes:
        """Once all has ended well."""
        raise NotImplementedError

    def fail(self, error: ApiError) -> bytes:
        """Once, instead of `end`."""
        raise NotImplementedError

    # --

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Middleware looks at the start of an answer; the many parts after it go straight to the connection.
        send_body: Send = scope.get(CONNECTION, send)
        try:
            async with self._inflight.watch(receive) as watch, await self._start() as work:
                self.work = work
                await work.begin(FIRST_EVENT_S)  # the status line waits until there is something to send
                self._sends = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await self._wait(watch, send_body)
                await self._pump(watch, send_body)
        except ClientGone as error:
            self._account.fail(error)
            logger.debug("a stream's client left")
        except Exception as error:
            if not self._sends:
                raise
            failure = told(error, "a stream")
            self._account.fail(failure)
            await self._fail(failure, send_body)

    async def _fail(self, error: ApiError, send: Send) -> None:
        try:
            last = {"type": "http.response.body", "body": self.fail(error)}
            await asyncio.wait_for(send(last), self._inflight.send_timeout)
        except (asyncio.TimeoutError, OSError):
            logger.debug("a stream's client did not take the error event")

    async def _wait(self, watch: Watch, send: Send) -> None:
        """Until something has come, without being silent for long."""
        while self.work.is_silent:
            await self.work.begin(SILENCE_S)
            if self.work.is_silent:
                await _send(self.wait(), watch, send)

    async def _pump(self, watch: Watch, send: Send) -> None:
        work, ended = self.work, False
        while not ended:
            await work.wait()
            arrived = work.take()
            if any(self.is_long(index, delta) for index, delta in arrived):
                chunk = b"".join([await asyncio.to_thread(self.chunk, index, delta) for index, delta in arrived])
            else:
                chunk = b"".join([self.chunk(index, delta) for index, delta in arrived])
            ended = work.ended
            if ended:
                chunk += self.end()
            if chunk:
                await _send(chunk, watch, send)
        await send({"type": "http.response.body", "body": b""})


async def _send(chunk: bytes, watch: Watch, send: Send) -> None:
    watch.sending()
    await send({"type": "http.response.body", "body": chunk, "more_body": True})
    watch.sent()
