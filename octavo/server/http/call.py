"""One call of a face: its body decoded and checked, the model it is for, and its answer, streamed or whole.

Invariants: a stream never just ends: a failure before the first event is a plain 4xx or 5xx, a later one a last event
that tells it; whatever happens, the engine's work is closed. A reader that takes nothing for the send time-out is
dropped (the transport holds at most its 64 KiB meanwhile).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.errors import ApiError
from octavo.server.core.account import Account
from octavo.server.core.errors import ClientGone, unexpected
from octavo.server.core.inflight import InFlight, Watch
from octavo.server.core.serving import Served, Serving
from octavo.server.core.work import Work
from octavo.server.http.decode import Decodes, read
from octavo.server.http.failures import account_of
from octavo.server.http.sse import CONNECTION, Writer

logger = logging.getLogger("octavo.server")

FIRST_EVENT_S = 1.0
"""How long the status line waits for the first event, so that what the engine refuses at once is a plain 4xx."""
SILENCE_S = 10.0
"""How long nothing comes before the first token until the client is told that the stream lives: a long prompt takes its
time, and clients and proxies give up on silence."""


class Asked(Protocol):
    """A body."""

    @property
    def model(self) -> str | None: ...

    def check(self) -> None:
        """What can be known without the model. Raises RequestError."""
        ...


T = TypeVar("T", bound=Asked)


@dataclass(frozen=True)
class Call(Generic[T]):
    request: Request
    asked: T
    serving: Serving
    served: Served
    account: Account

    @classmethod
    async def read(cls, request: Request, decoder: Decodes[T], *, generates: bool = False) -> Call[T]:
        """`generates`: it is refused while the server is shutting down. Raises RequestError, ModelNotFound,
        Unavailable."""
        serve = serving(request)
        if generates:
            serve.inflight.refuse_when_draining()
        asked = await read(serve.defaults.decoder(decoder), request)
        asked.check()
        return cls(request, asked, serve, serve.find(asked.model), account_of(request.scope))

    async def answered(
        self,
        start: Callable[[], Awaitable[Work]],
        whole: Callable[[Work], Awaitable[msgspec.Struct]],
        writer: Callable[[Work], Writer] | None,
    ) -> Response:
        """What comes of the work, as the stream that `writer` makes of it; without one as the body `whole`."""
        inflight = self.serving.inflight
        self.account.is_streamed = writer is not None
        if writer is not None:
            return EventStream(start, writer, inflight)
        async with inflight.watch(self.request.receive), await start() as work:
            return json_response(await whole(work))


def serving(request: Request) -> Serving:
    found = request.app.state.serving
    assert isinstance(found, Serving)
    return found


def json_response(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


class EventStream(Response):
    """Awaits `start` (what it refuses is a plain answer), then sends what the writer makes of the work."""

    def __init__(
        self, start: Callable[[], Awaitable[Work]], writer: Callable[[Work], Writer], inflight: InFlight
    ) -> None:
        super().__init__(None, media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._start = start
        self._write = writer
        self._inflight = inflight
        self._started = False
        self._writer: Writer | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Middleware looks at the start of an answer; the many parts after it go straight to the connection.
        send_body: Send = scope.get(CONNECTION, send)
        try:
            async with self._inflight.watch(receive) as watch, await self._start() as work:
                self._writer = writer = self._write(work)
                await self._begin(work, send)
                await self._pump(work, writer, watch, send_body)
        except ClientGone as error:
            account_of(scope).fail(error)
            logger.debug("a stream's client left")
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, ApiError):
                logger.exception("a stream failed")
            failure = error if isinstance(error, ApiError) else unexpected()
            account_of(scope).fail(failure)
            await self._fail(failure, send_body)

    async def _fail(self, error: ApiError, send: Send) -> None:
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
            arrived = work.take()
            if any(writer.is_long(index, delta) for index, delta in arrived):
                chunk = b"".join([await asyncio.to_thread(writer.chunk, index, delta) for index, delta in arrived])
            else:
                chunk = b"".join([writer.chunk(index, delta) for index, delta in arrived])
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
