"""How a failure becomes an HTTP answer: one JSON body, whatever went wrong, in the words of the face that was asked.

Invariant: what is not an ApiError is logged and answered as a plain 500.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from octavo.errors import ApiError, RequestError
from octavo.server.core.account import Account
from octavo.server.core.errors import MethodNotAllowed, NotFound

ACCOUNT, WORDING = "octavo.account", "octavo.wording"
"""Keys of the scope: the request's Account, and how its face words a failure."""
Wording = Callable[[Scope, ApiError, str], tuple[bytes, Mapping[str, str]]]
"""(scope, error, request id) → the body and the headers of its own."""
Unserved = Callable[[str, str], ApiError | None]
"""(method, path) that no route takes → why a known one is not served; None for any other."""


def account_of(scope: Scope) -> Account:
    found = scope[ACCOUNT]
    assert isinstance(found, Account)
    return found


class Failure(Response):
    """Worded when it is sent, and noted in the request's account."""

    def __init__(self, error: ApiError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(None, error.status, headers, "application/json")
        if error.retry_after is not None:
            self.headers["retry-after"] = str(error.retry_after)
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        account = account_of(scope)
        account.fail(self._error)
        self.body, own = scope[WORDING](scope, self._error, account.request_id)
        self.headers.update({**own, "content-length": str(len(self.body))})
        await super().__call__(scope, receive, send)


async def on_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Failure(error)


def on_http_exception(unserved: Unserved) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Starlette's own 404 and 405 (with its Allow header), in our body."""

    async def answer(request: Request, error: Exception) -> Response:
        status = int(getattr(error, "status_code", 500))
        headers = getattr(error, "headers", None)
        if (known := unserved(request.method, request.url.path)) is not None:
            return Failure(known)
        if status == 404:
            return Failure(NotFound("there is no such route; /docs lists those there are"), headers)
        if status == 405:
            allowed = _allowed(request)
            message = f"this route does not take {request.method[:16]}; allowed: {allowed}"
            return Failure(MethodNotAllowed(message), {**(headers or {}), "Allow": allowed})
        failure = RequestError(str(getattr(error, "detail", "bad request")))
        failure.status = status
        return Failure(failure, headers)

    return answer


def _allowed(request: Request) -> str:
    """Every method of the path: each has a route of its own."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found))
