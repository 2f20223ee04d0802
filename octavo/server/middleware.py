"""The limits of a request's body, as plain ASGI: `BodyGuard` counts bytes as they arrive, so a body over the limit is
refused before it is held. What surrounds every request is in context.py.
"""

from __future__ import annotations

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.errors import ApiError, RequestError
from octavo.server.errors import ContentTooLarge, UnsupportedMediaType, error_response

logger = logging.getLogger("octavo.server")

LINGER_S = 5.0
"""How long a refused body is read and thrown away, so that its sender gets to see the answer."""


class BodyGuard:
    """Refuses bodies larger than `limit` bytes (413), whatever Content-Length says.

    A later issue adds the time-outs of a trickling body around `guarded`.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        num_bytes = 0

        async def guarded() -> Message:
            nonlocal num_bytes
            message = await receive()
            if message["type"] == "http.request":
                num_bytes += len(message.get("body", b""))
                if num_bytes > self.limit:
                    raise self._too_large()
            return message

        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self._check_length(Headers(scope=scope))
            await self.app(scope, guarded, watched)
        except ContentTooLarge as error:
            if not started:
                await self._refuse(error, scope, receive, send)

    def _check_length(self, headers: Headers) -> None:
        """Refuse by Content-Length where it tells the truth about being too long."""
        length = headers.get("content-length")
        if length is not None:
            if not (length.isascii() and length.isdigit()):
                raise RequestError("Content-Length is not a number")
            if len(length) > 15 or int(length) > self.limit:
                raise self._too_large()

    def _too_large(self) -> ContentTooLarge:
        return ContentTooLarge(f"the request body is larger than the limit of {self.limit} bytes")

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at once, then let the sender finish: closing on unread data would reset what it has not read yet."""
        response = error_response(error, {"connection": "close"})

        async def hold(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        await response(scope, receive, hold)
        try:
            await asyncio.wait_for(_discard(receive), LINGER_S)
        except asyncio.TimeoutError:
            logger.debug("a refused body did not end in time")
        await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


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
