"""Server-sent events: what becomes of a request's work, written as one streamed answer that never just ends.

Used by the chat and completions handlers. Invariants: a failure before the first event is a plain 4xx or 5xx, a later
one is a last `data: {"error": …}` without [DONE]; whatever happens, the engine's work is closed. A reader that takes
nothing for SEND_TIMEOUT_S is dropped (the transport holds at most its 64 KiB meanwhile).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.errors import ApiError
from octavo.server.core.account import current
from octavo.server.core.errors import ClientGone, unexpected
from octavo.server.core.inflight import InFlight, Watch
from octavo.server.core.work import Work
from octavo.types import Delta

logger = logging.getLogger("octavo.server")

DONE = b"data: [DONE]\n\n"
FIRST_EVENT_S = 1.0
"""How long the status line waits for the first event, so that what the engine refuses at once is a plain 4xx."""
SILENCE_S = 10.0
"""How long nothing comes before the first token until the client is told that the stream lives: a long prompt takes its
time, and clients and proxies give up on silence."""
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: says nothing, but something."""


CONNECTION = "octavo.connection"
"""Key of the scope: the `send` of the connection itself, past all middleware."""


_json = msgspec.json.Encoder().encode


def event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


class Template:
    """An event of which only one text changes: the bytes before and after it."""

    def __init__(self, sample: bytes, field: str) -> None:
        """`sample`: the event with this field an empty text, which stands in it once: quotes inside of texts are
        escaped."""
        empty = f'"{field}":""'.encode()
        assert sample.count(empty) == 1, "not a template"
        at = sample.index(empty) + len(empty) - 2
        self._before, self._after = sample[:at], sample[at + 2 :]

    def fill(self, text: str) -> bytes:
        return self._before + _json(text) + self._after


class Writer(Protocol):
    """Says in bytes what has come: whole `data: …` records, several may be joined."""

    def chunk(self, prompt_index: int, delta: Delta) -> bytes:
        """May be empty."""
        ...

    def wait(self) -> bytes:
        """A sign of life, before anything has come."""
        ...

    def end(self) -> bytes:
        """Once all has ended well."""
        ...

    def fail(self, error: ApiError) -> bytes:
        """Once, instead of `end`."""
        ...


class EventStream(Response):
    """Awaits `start` (what it refuses is a plain answer), then sends what the writer makes of the work."""

    def __init__(self, start: Callable[[], Awaitable[tuple[Work, Writer]]], inflight: InFlight) -> None:
        super().__init__(None, media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._start = start
        self._inflight = inflight
        self._started = False
        self._writer: Writer | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Middleware looks at the start of an answer; the many parts after it go straight to the connection.
        send_body: Send = scope.get(CONNECTION, send)
        try:
            async with self._inflight.watch(receive) as watch:
                work, writer = await self._start()
                self._writer = writer
                async with work:
                    await self._begin(work, send)
                    await self._pump(work, writer, watch, send_body)
        except ClientGone as error:
            current().fail(error)
            logger.debug("a stream's client left")
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, ApiError):
                logger.exception("a stream failed")
            await self._fail(error if isinstance(error, ApiError) else unexpected(), send_body)

    async def _fail(self, error: ApiError, send: Send) -> None:
        current().fail(error)
        try:
            assert self._writer is not None, "a stream began without its writer"
            last = {"type": "http.response.body", "body": self._writer.fail(error)}
            await asyncio.wait_for(send(last), self._inflight.send_timeout)
        except (asyncio.TimeoutError, OSError):
            logger.debug("a stream's client did not take the error event")

    async def _begin(self, work: Work, send: Send) -> None:
        """The status line, once there is something to send or it has waited long enough."""
        await work.begin(FIRST_EVENT_S)
        self._started = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def _pump(self, work: Work, writer: Writer, watch: Watch, send: Send) -> None:
        await self._wait(work, writer, watch, send)
        while True:
            await work.wait()
            chunk = b"".join([writer.chunk(index, delta) for index, delta in work.take()])
            ended = work.ended
            if ended:
                chunk += writer.end()
            if chunk:
                watch.sending()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                watch.sent()
            if ended:
                await send({"type": "http.response.body", "body": b""})
                return

    async def _wait(self, work: Work, writer: Writer, watch: Watch, send: Send) -> None:
        """Until something has come, without being silent for long."""
        while work.is_silent:
            await work.begin(SILENCE_S)
            if work.is_silent:
                watch.sending()
                await send({"type": "http.response.body", "body": writer.wait(), "more_body": True})
                watch.sent()
