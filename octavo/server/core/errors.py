"""What can go wrong with an HTTP request before, beside and after its work, and what of a message may be told.

Invariant: a message that has been through `clean` holds no path of this machine and no memory address.
"""

from __future__ import annotations

import re

from octavo.errors import ApiError, EngineError


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


_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
_PATH = re.compile(r"(?<![\w:/.])/(?!(?:v1|v2|api)/)(?:[\w.+@~-]+/)+[\w.+@~-]*")


def clean(message: str) -> str:
    """The message without memory addresses and absolute paths; routes may stand there."""
    if "0x" in message:
        message = _ADDRESS.sub("…", message)
    return _PATH.sub("…", message) if "/" in message else message


def unexpected() -> ApiError:
    """What a client is told of a failure of ours; the log has the traceback."""
    return EngineError("the server failed to handle this request; its log has the details", code="internal_error")
