"""The body of a request, as plain ASGI: how large it may be, how long it may take, what is left of it after the answer.

`BodyGuard` counts bytes as they arrive, so a body over the limit is refused before it is held, and hands the whole body
on as one message: a body that comes byte by byte costs no more memory than another. An answer that comes before the end
of its request's body lets the sender finish for a while, then closes the connection.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import ApiError, RequestError, Unavailable
from octavo.server.core.errors import ContentTooLarge, RequestTimeout, UnsupportedMediaType
from octavo.server.http.failures import Failure

logger = logging.getLogger("octavo.server")

LINGER_S = 5.0
"""How long the rest of a body is read and thrown away, so that its sender gets to see the answer."""
SETTLE_S = 0.02
"""How long an early answer waits for the end of a body that has all but come; then the connection is to be closed."""
BYTES_PER_S = 16384
"""A body that comes at least so fast never times out."""
SMALL_BODY = 1 << 18
HELD_BODIES = 16
"""All bodies together that are not small may take as much memory as so many of the largest."""
RETRY_AFTER_S = 2


class BodyRefused(Exception):
    """Passes through the application as no ApiError does, up to the guard that raised it."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class BodyGuard:
    """Refuses bodies larger than `limit` bytes (413), whatever Content-Length says, those that take longer than
    `timeout` seconds and their size allow (408), and large ones while too many are held (503)."""

    def __init__(self, app: ASGIApp, limit: int, timeout: float) -> None:
        self.app = app
        self._limit = limit
        self._timeout = timeout
        self._held = 0
        """Bytes of the bodies of all requests that have not ended, as far as they are not small."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
            await self.app(scope, receive, send)
            return
        body = _Body(self, receive, send, is_awaited="expect" in headers)
        try:
            self._check_length(headers.get("content-length"))
            await self.app(scope, body.receive, body.send)
        except BodyRefused as refused:
            if not body.answered:
                await Failure(refused.error)(scope, body.receive, body.send)
        finally:
            self._held -= body.held

    def time_left(self, waited: float, num_bytes: int) -> float:
        return self._timeout + num_bytes / BYTES_PER_S - waited

    def hold(self, body: _Body, num_bytes: int) -> None:
        """The body has so many bytes by now. Raises BodyRefused when they are too many, or too many for now."""
        if num_bytes > self._limit:
            raise BodyRefused(too_large(self._limit))
        if num_bytes > SMALL_BODY:
            self._held += num_bytes - body.held
            body.held = num_bytes
            if self._held > HELD_BODIES * self._limit:
                message = "the server holds too many large request bodies; try again shortly"
                raise BodyRefused(Unavailable(message, code="too_many_bodies", retry_after=RETRY_AFTER_S))

    def _check_length(self, length: str | None) -> None:
        """Refuse by Content-Length where it tells the truth about being too long."""
        if length is not None:
            if not (length.isascii() and length.isdigit()):
                raise BodyRefused(RequestError("Content-Length is not a number"))
            if len(length) > 15 or int(length) > self._limit:
                raise BodyRefused(too_large(self._limit))


def too_large(limit: int) -> ContentTooLarge:
    return ContentTooLarge(f"the request body is larger than the limit of {limit} bytes")


class _Body:
    """One request's body on its way in, and the answer on its way out."""

    def __init__(self, guard: BodyGuard, receive: Receive, send: Send, *, is_awaited: bool) -> None:
        """`is_awaited`: the sender waits to be asked for it (Expect: 100-continue)."""
        self.answered = False
        self.held = 0
        """What the guard counts of it."""
        self._guard = guard
        self._receive = receive
        self._send = send
        self._is_awaited = is_awaited
        self._ended = False
        self._timed_out = False

    async def receive(self) -> Message:
        """The whole body as one message, then what follows it. Raises BodyRefused."""
        if self._ended:
            return await self._receive()
        self._is_awaited = False
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        started, body = loop.time(), bytearray()

        timer = loop.call_later(self._guard.time_left(0, 0), lambda: expire())

        def expire() -> None:
            nonlocal timer
            left = self._guard.time_left(loop.time() - started, len(body))
            if left > 0:
                timer = loop.call_later(left, expire)
            else:
                self._timed_out = True
                task.cancel()

        try:
            while not self._ended:
                message = await self._receive()
                if message["type"] != "http.request":
                    self._ended = True
                    return message
                body += message.get("body", b"")
                self._ended = not message.get("more_body", False)
                self._guard.hold(self, len(body))
        except asyncio.CancelledError:
            if not self._timed_out:
                raise
            if uncancel := getattr(task, "uncancel", None):  # Python 3.11 counts cancellations
                uncancel()
            late = RequestTimeout(f"the request body did not come in time: {len(body)} bytes of it came")
            raise BodyRefused(late) from None
        finally:
            timer.cancel()
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered = True
            await self._discard(SETTLE_S)
            if not self._ended:
                MutableHeaders(scope=message)["connection"] = "close"
        elif not self._ended and not message.get("more_body", False):
            # Closing on unread data would reset what the sender has not read of the answer yet.
            await self._send({**message, "more_body": True})
            await self._discard(LINGER_S)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _discard(self, seconds: float) -> None:
        if not (self._ended or self._is_awaited or self._timed_out):
            try:
                await asyncio.wait_for(self._rest(), seconds)
            except asyncio.TimeoutError:
                logger.debug("the rest of a body did not end within %g s", seconds)

    async def _rest(self) -> None:
        while not self._ended:
            message = await self._receive()
            self._ended = message["type"] != "http.request" or not message.get("more_body", False)


def require_json(headers: Headers) -> None:
    """Raises UnsupportedMediaType for a declared type other than JSON, another charset, or a compressed body."""
    kind, _, rest = headers.get("content-type", "application/json").partition(";")
    kind = kind.strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType(f"Content-Type is {kind[:80]!r}; send application/json")
    charset = rest.lower().partition("charset=")[2].strip(' "')
    if charset and charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"charset {charset[:40]!r} is not supported; send UTF-8")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("compressed request bodies are not supported; send the JSON as it is")
