"""A route of the server, and all of them together with the words in which they fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from octavo.server.http.failures import Unserved, Wording

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Endpoint:
    """`asked`, `given`: the bodies of request and answer (None: none, or plain text); `streamed`: an event's data."""

    method: str
    path: str
    handler: Handler
    summary: str
    asked: Any = None
    given: Any = None
    streamed: Any = None
    problem: Any = None
    """The body of every failure, where it is not OpenAI's."""
    special: Mapping[int, Any] = field(default_factory=dict)
    """Other bodies by status."""
    example: dict[str, Any] | None = None
    is_open: bool = False
    """Answers without an API key."""
    needs_model: bool = True
    """503 while no model is loaded."""
    is_documented: bool = True


def _of(method: str) -> Callable[..., Endpoint]:
    def endpoint(path: str, handler: Handler, summary: str, **more: Any) -> Endpoint:
        return Endpoint(method=method, path=path, handler=handler, summary=summary, **more)

    return endpoint


get, post, delete = _of("GET"), _of("POST"), _of("DELETE")


@dataclass(frozen=True)
class Site:
    endpoints: Sequence[Endpoint]
    wording: Wording
    unserved: Unserved
