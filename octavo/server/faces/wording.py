"""Which face a request was meant for when it fails, and that face's words."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Scope

from octavo.errors import ApiError
from octavo.server.faces.anthropic.errors import anthropic_body, is_spoken
from octavo.server.faces.openai.errors import error_body


def worded(scope: Scope, error: ApiError, request_id: str) -> tuple[bytes, Mapping[str, str]]:
    """→ the body of a failure and the headers of its own; what no face claims is in OpenAI's words."""
    if is_spoken(scope):
        return anthropic_body(error, request_id), {"request-id": request_id}
    return error_body(error), {}
