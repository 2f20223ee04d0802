"""A route of the server, and all of them together with the words in which they fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from octavo.server.http.failures import Unserved, Wording


@dataclass(frozen=True, eq=False)
class Endpoint:
    """`asked`, `given`: the bodies of request and answer (None: none, or plain text); `streamed`: an event's data."""

    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    _: KW_ONLY
    method: str = "GET"
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


@dataclass(frozen=True)
class Site:
    endpoints: Sequence[Endpoint]
    wording: Wording
    unserved: Unserved
