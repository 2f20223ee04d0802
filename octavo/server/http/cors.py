"""Which web pages may call this server from a browser: none, unless their origins are named.

Outermost, so that every answer, errors too, carries what a browser wants to see before it shows them to the page. Keys
travel in headers that a page sets itself: cookies and other credentials are never allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.errors import ConfigError, RequestError
from octavo.server.http.failures import Failure

PREFLIGHT = "octavo.preflight"
"""Key of the scope: the answer to a browser's question whether it may ask."""
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
EXPOSED = (
    "x-request-id", "retry-after",
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
)  # fmt: skip
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Cors(CORSMiddleware):
    """`origins`: from `checked_origins`."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(app, allow_origins=origins, allow_methods=METHODS, allow_headers=["*"], expose_headers=EXPOSED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "origin" in headers and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            scope[PREFLIGHT] = self.preflight_response(headers)
        await self.simple_response(scope, receive, send, request_headers=headers)

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return Failure(RequestError(bytes(response.body).decode(), code="cors"), kept)


def checked_origins(given: Sequence[str]) -> list[str]:
    """The origins as browsers send them. Raises ConfigError for what no browser would send."""
    return [_origin(text) for text in given]


def _origin(text: str) -> str:
    if text == "*":
        return text
    try:
        parts = urlsplit(text.lower().rstrip("/"))
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    extra = parts.path or parts.query or parts.fragment or parts.username is not None
    if parts.scheme not in _DEFAULT_PORTS or not host or extra or "*" in host:
        raise ConfigError(
            f"--cors-origin {text}: not an origin; write it as https://example.com or http://localhost:3000"
        )
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}")
