"""What can go wrong with an HTTP request before, beside and after its work, and what of a message may be told.

Invariant: a message that has been through `clean` holds no path of this machine and no memory address.
"""

from __future__ import annotations

import logging
import re

from octavo.errors import ApiError, EngineError


class Refused(ApiError, type="invalid_request_error"):
    """The request cannot be taken, whatever its body says."""


class NotFound(Refused, status=404, code="not_found"):
    """There is no such route."""


class MethodNotAllowed(Refused, status=405, code="method_not_allowed"):
    """The route takes others."""


class RequestTimeout(Refused, status=408, code="request_timeout"):
    """The head or the body of a request took too long to come."""


class ContentTooLarge(Refused, status=413, code="content_too_large"):
    """The body has more bytes than the server takes."""


class UnsupportedMediaType(Refused, status=415, code="unsupported_media_type"):
    """The body is no JSON in UTF-8."""


logger = logging.getLogger("octavo.server")

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
_PATH = re.compile(r"(?<![\w:/.])/(?!(?:v1|v2|api)/)(?:[\w.+@~-]+/)+[\w.+@~-]*")


def clean(message: str) -> str:
    """The message without memory addresses and absolute paths; routes may stand there."""
    if "0x" in message:
        message = _ADDRESS.sub("…", message)
    return _PATH.sub("…", message) if "/" in message else message


def told(error: Exception, failed: str) -> ApiError:
    """What a client is told of it; of a failure of ours the log has the traceback, after what `failed`."""
    if isinstance(error, ApiError):
        return error
    logger.error("%s failed", failed, exc_info=error)
    return EngineError("the server failed to handle this request; its log has the details", code="internal_error")
