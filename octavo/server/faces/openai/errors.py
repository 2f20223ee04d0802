"""The body of a failure in OpenAI's form, which is that of every route that has none of its own."""

from __future__ import annotations

import msgspec

from octavo.errors import ApiError
from octavo.server.core.errors import clean


class ErrorInfo(msgspec.Struct, kw_only=True):
    """All four keys are always present."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, kw_only=True):
    """Body of every answer that is not 2xx, and of an event that ends a failed stream."""

    error: ErrorInfo


def error_body(error: ApiError) -> bytes:
    info = ErrorInfo(message=clean(error.message), type=error.type, param=error.param, code=error.code)
    return msgspec.json.encode(ErrorResponse(error=info))
