"""Server-sent events: an async generator of encoded events becomes one streamed answer that never just ends.

Used by the chat and completions handlers. Invariants: a failure before the first event is a plain 4xx or 5xx, a later
one is a last `data: {"error": …}` without [DONE]; whatever happens, the engine's work is closed. A reader that takes
nothing for SEND_TIMEOUT_S is dropped (the transport holds at most its 64 KiB meanwhile).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.errors import ApiError
from octavo.server.errors import ClientGone, error_body, unexpected
from octavo.server.inflight import InFlight, Watch

logger = logging.getLogger("octavo.server")

Events = AsyncGenerator[bytes, None]
Close = Callable[[], Awaitable[None]]

DONE = b"data: [DONE]\n\n"
FIRST_EVENT_S = 1.0
"""How long the status line waits for the first event, so that what the engine refuses at once is a plain 4xx."""


def event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


class EventStream(Response):
    """Awaits `start` (what it refuses is a plain answer), then sends what the returned generator yields: whole
    `data: …` records, several may be joined. In the end it awaits the returned close, also when nothing was sent."""

    def __init__(self, start: Callable[[], Awaitable[tuple[Events, Close]]], inflight: InFlight) -> None:
        super().__init__(None, media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._start = start
        self._inflight = inflight
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._inflight.watch(receive) as watch:
                events, close = await self._start()
                try:
                    await self._pump(events, watch, send)
                finally:
                    await events.aclose()
                    await close()
        except ClientGone:
            logger.debug("a stream's client left")
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, ApiError):
                logger.exception("a stream failed")
            await self._fail(error if isinstance(error, ApiError) else unexpected(), send)

    async def _fail(self, error: ApiError, send: Send) -> None:
        try:
            last = {"type": "http.response.body", "body": event(error_body(error))}
            await asyncio.wait_for(send(last), self._inflight.send_timeout)
        except (asyncio.TimeoutError, OSError):
            logger.debug("a stream's client did not take the error event")

    async def _pump(self, events: Events, watch: Watch, send: Send) -> None:
        first = asyncio.ensure_future(anext(events))
        try:
            await asyncio.wait({first}, timeout=FIRST_EVENT_S)
            if first.done():
                first.result()
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            chunk = await first
        finally:
            if not first.done():
                first.cancel()
                await asyncio.wait({first})
        await self._send(watch, send, chunk)
        async for chunk in events:
            await self._send(watch, send, chunk)
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, watch: Watch, send: Send, chunk: bytes) -> None:
        watch.sending()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        watch.sent()
