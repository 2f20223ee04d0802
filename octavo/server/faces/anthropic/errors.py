"""The body of a failure on the routes of Anthropic's API. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.datastructures import Headers
from starlette.types import Scope

from octavo.errors import ApiError
from octavo.server.core.errors import clean

MESSAGES, MODELS = "/v1/messages", "/v1/models"
VERSION = "anthropic-version"
"""A header that every client of Anthropic's API sends."""

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


class AnthropicError(msgspec.Struct, kw_only=True):
    type: str
    message: str


class AnthropicErrorResponse(msgspec.Struct, kw_only=True):
    """Body of every answer that is not 2xx, and of the event that ends a failed stream."""

    type: Literal["error"] = "error"
    error: AnthropicError
    request_id: str | None


def is_spoken(scope: Scope) -> bool:
    """Whether a request is meant in Anthropic's form: by its path, or by the header where both forms share a path."""
    path = scope.get("path", "")
    if path == MODELS or path.startswith(MODELS + "/"):
        return VERSION in Headers(scope=scope)
    return bool(path == MESSAGES or path.startswith(MESSAGES + "/"))


def anthropic_body(error: ApiError, request_id: str) -> bytes:
    """This form has no field for the parameter: the text names it."""
    message = clean(error.message)
    if error.param is not None and error.param.split(".")[0].split("[")[0] not in message:
        message = f"{error.param}: {message}"
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    body = AnthropicErrorResponse(error=AnthropicError(type=kind, message=message), request_id=request_id or None)
    return msgspec.json.encode(body)
