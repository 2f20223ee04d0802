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
from octavo.fair import FairGate
from octavo.server.core.account import Account
from octavo.server.core.errors import ContentTooLarge, RequestTimeout
from octavo.server.http.deadline import Deadline
from octavo.server.http.failures import Failure, account_of

logger = logging.getLogger("octavo.server")

LINGER_S = 5.0
"""How long the rest of a body is read and thrown away, so that its sender gets to see the answer."""
SETTLE_S = 0.02
"""How long an early answer waits for the end of a body that has all but come; then the connection is to be closed."""
BYTES_PER_S = 16384
"""A body that comes at least so fast never times out."""
SMALL_BODY = 1 << 18
LARGE_BYTES_PER_S = 1 << 18
"""The same for one that is not small: others wait for its room."""
HELD_BODIES = 4
"""All bodies together that are not small may take as much memory as so many of the largest; further ones wait before
they are read, the keys in turn."""
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
        self.limit = limit
        self.timeout = timeout
        self.large = FairGate(HELD_BODIES * limit)
        """Bytes of the bodies that are not small."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
            await self.app(scope, receive, send)
            return
        body = _Body(self, receive, send, account_of(scope), is_awaited="expect" in headers)
        try:
            body.length = self._length(headers.get("content-length"))
            await self.app(scope, body.receive, body.send)
        except BodyRefused as refused:
            if not body.answered:
                await Failure(refused.error)(scope, body.receive, body.send)
        finally:
            body.release()

    async def hold(self, body: _Body, num_bytes: int, owner: str) -> None:
        """The body has, or says that it has, so many bytes. Raises BodyRefused when they are too many, or no room came
        for them in time."""
        if num_bytes > self.limit:
            raise BodyRefused(too_large(self.limit))
        if num_bytes > SMALL_BODY and not body.held:
            wanted = self.limit if body.length is None else body.length
            try:
                await asyncio.wait_for(self.large.enter(owner, wanted), self.timeout)
            except asyncio.TimeoutError:
                message = "the server holds too many large request bodies; try again shortly"
                raise BodyRefused(Unavailable(message, code="too_many_bodies", retry_after=RETRY_AFTER_S)) from None
            body.held = wanted

    def _length(self, length: str | None) -> int | None:
        """By Content-Length; a body that says it is too long is refused. None for one in chunks."""
        if length is None:
            return None
        if not (length.isascii() and length.isdigit()):
            raise BodyRefused(RequestError("Content-Length is not a number"))
        if len(length) > 15 or int(length) > self.limit:
            raise BodyRefused(too_large(self.limit))
        return int(length)


def too_large(limit: int) -> ContentTooLarge:
    return ContentTooLarge(f"the request body is larger than the limit of {limit} bytes")


class _Body:
    """One request's body on its way in, and the answer on its way out."""

    def __init__(self, guard: BodyGuard, receive: Receive, send: Send, account: Account, *, is_awaited: bool) -> None:
        """`is_awaited`: the sender waits to be asked for it (Expect: 100-continue)."""
        self.answered = False
        self.length: int | None = None
        """As the sender says; None where it does not."""
        self.held = 0
        """Bytes of the gate's that it takes."""
        self._account = account
        self._loop = asyncio.get_running_loop()
        self._num_bytes = 0
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
        owner = self._account.owner
        if self.length is not None:
            await self._guard.hold(self, self.length, owner)
        self._is_awaited = False
        task = asyncio.current_task()
        assert task is not None
        body = bytearray()
        self._task, self._started = task, self._loop.time()
        self._expire()
        try:
            while not self._ended:
                message = await self._receive()
                if message["type"] != "http.request":
                    self._ended = True
                    return message
                body += message.get("body", b"")
                self._ended = not message.get("more_body", False)
                self._num_bytes = len(body)
                if self._num_bytes > SMALL_BODY and not self.held:
                    paused = self._loop.time()
                    self._timer.cancel()
                    await self._guard.hold(self, self._num_bytes, owner)
                    self._started += self._loop.time() - paused
                    self._expire()
                elif self._num_bytes > self._guard.limit:
                    raise BodyRefused(too_large(self._guard.limit))
        except asyncio.CancelledError:
            if not self._timed_out:
                raise
            if uncancel := getattr(task, "uncancel", None):  # Python 3.11 counts cancellations
                uncancel()
            late = RequestTimeout(f"the request body did not come in time: {len(body)} bytes of it came")
            raise BodyRefused(late) from None
        finally:
            self._timer.cancel()
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    def _expire(self) -> None:
        """Looks whether the body is late, and when to look again."""
        pace = BYTES_PER_S if self._num_bytes <= SMALL_BODY else LARGE_BYTES_PER_S
        left = self._guard.timeout + self._num_bytes / pace - (self._loop.time() - self._started)
        if left > 0:
            self._timer = Deadline(self._loop, left, self._expire)
        else:
            self._timed_out = True
            self._task.cancel()

    def release(self) -> None:
        """Its memory is free again."""
        held, self.held = self.held, 0
        if held:
            self._guard.large.leave(held)

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
