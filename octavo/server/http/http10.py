"""HTTP/1.0 has no chunks: an answer of unknown length is sent as it is, and the end of the connection ends it.

uvicorn chunks whatever has no content-length (RFC 9112, 6.1 forbids it here).
"""

from __future__ import annotations

import sys

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def unchunked(cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
    """`app` for this one request, which closes its connection as every one of HTTP/1.0 does."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        is_open_ended = False

        async def send_plain(message: Message) -> None:
            nonlocal is_open_ended
            if message["type"] == "http.response.start":
                is_open_ended = all(name.lower() != b"content-length" for name, _ in message.get("headers", []))
                if is_open_ended:
                    cycle.chunked_encoding = False
                    cycle.expected_content_length = sys.maxsize
            elif is_open_ended and not message.get("more_body", False):
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return run
