"""How a failure becomes an HTTP answer: one JSON body with four keys, whatever went wrong; on the routes of Anthropic's
API their own form of it.

Called by the middleware, the handlers and the event stream. Invariant: the body never holds a traceback, a path of
this machine or a memory address; what is not an ApiError is logged and answered as a plain 500.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from octavo.errors import ApiError, EngineError, Place, RequestError
from octavo.server.core.account import current
from octavo.server.faces.anthropic.errors import anthropic_body, is_spoken


class ErrorInfo(msgspec.Struct, kw_only=True):
    """All four keys are always present."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, kw_only=True):
    """Body of every answer that is not 2xx, and of an event that ends a failed stream."""

    error: ErrorInfo


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class RequestTimeout(ApiError):
    """The head or the body of a request took too long to come."""

    status = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class ContentTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    default_code = "content_too_large"


class UnsupportedMediaType(ApiError):
    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class ClientGone(ApiError):
    """The client left or stopped reading; nobody sees this answer, the log shows its status."""

    status = 499
    default_code = "client_gone"


_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
_PATH = re.compile(r"(?<![\w:/.])/(?!(?:v1|v2|api)/)(?:[\w.+@~-]+/)+[\w.+@~-]*")


def clean(message: str) -> str:
    """The message without memory addresses and absolute paths; routes may stand there."""
    if "0x" in message:
        message = _ADDRESS.sub("…", message)
    return _PATH.sub("…", message) if "/" in message else message


def error_body(error: ApiError) -> bytes:
    info = ErrorInfo(message=clean(error.message), type=error.type, param=error.param, code=error.code)
    return msgspec.json.encode(ErrorResponse(error=info))


class _Failure(Response):
    """Its body is written when it is sent: the path says in which form."""

    def __init__(self, error: ApiError, headers: Mapping[str, str] | None) -> None:
        super().__init__(error_body(error), error.status, headers, "application/json")
        if error.retry_after is not None:
            self.headers["retry-after"] = str(error.retry_after)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_spoken(scope):
            request_id = current().request_id
            self.body = anthropic_body(self._error, clean(self._error.message), request_id)
            self.headers["content-length"] = str(len(self.body))
            self.headers["request-id"] = request_id
        await super().__call__(scope, receive, send)


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    current().fail(error)
    return _Failure(error, headers)


def unexpected() -> ApiError:
    """What a client is told of a failure of ours; the log has the traceback."""
    return EngineError("the server failed to handle this request; its log has the details", code="internal_error")


async def on_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405 (with its Allow header), in our body."""
    status = int(getattr(error, "status_code", 500))
    headers = getattr(error, "headers", None)
    if status == 404:
        return error_response(NotFound("there is no such route; /docs lists those there are"), headers)
    if status == 405:
        allowed = _allowed(request)
        headers = {**(headers or {}), "Allow": allowed}
        message = f"this route does not take {request.method[:16]}; allowed: {allowed}"
        return error_response(MethodNotAllowed(message), headers)
    failure = RequestError(str(getattr(error, "detail", "bad request")))
    failure.status = status
    return error_response(failure, headers)


def _allowed(request: Request) -> str:
    """Every method of the path: each has a route of its own."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found))


def refuse_nul(text: str, param: Place | str) -> None:
    if "\0" in text:
        raise RequestError(f"{param} holds a NUL character, which no model's text has; remove it", param=param)
