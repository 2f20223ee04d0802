"""What surrounds every request: its id, its account, its log line, its span, and the last net for failures.

Outermost of the middleware: whatever happens inside, the client gets an answer in the error format with an
x-request-id, and the request is logged and counted exactly once.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo import log
from octavo.errors import ClientGone
from octavo.server.core.account import Account
from octavo.server.core.errors import told
from octavo.server.core.metrics import PROBES, ServerMetrics
from octavo.server.http.failures import ACCOUNT, WORDING, Failure, Wording
from octavo.server.http.forwarded import Proxies
from octavo.server.http.sse import CONNECTION
from octavo.server.http.tracing import Tracing

access = logging.getLogger("octavo.access")

MAX_REQUEST_ID = 128
MAX_PATH = 128
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"})


@dataclass(eq=False)
class RequestContext:
    """`paths`: endpoint → the path under which it is registered, the label of its counter. `wording`: of failures."""

    app: ASGIApp
    metrics: ServerMetrics
    paths: Mapping[Any, str]
    wording: Wording
    proxies: Proxies
    access_log: bool = True
    tracing: Tracing | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault(CONNECTION, send)
        log.REQUEST_ID.set(request_id)
        scope[ACCOUNT] = account = Account(request_id)
        scope[WORDING] = self.wording
        account.client = self.proxies.client(scope)
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                account.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:  # before its body was complete: nobody is there to be answered
            account.fail(ClientGone("the client closed the connection"))
        except Exception as error:
            failure = told(error, "a request")
            if not account.status:
                await Failure(failure)(scope, receive, send_with_id)
        finally:
            account.seconds = time.perf_counter() - started
            if isinstance(account.error, ClientGone):
                account.status = account.status or ClientGone.status
            self._close(account, scope)

    def _close(self, account: Account, scope: Scope) -> None:
        route = self.paths.get(scope.get("endpoint"), "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        done = account.complete
        self.metrics.closed(method, route, account.status, account.seconds, account.code, complete=done)
        trace_id = None if self.tracing is None else self.tracing.record(account, route, Headers(scope=scope))
        level = logging.DEBUG if route in PROBES else logging.INFO
        if self.access_log and access.isEnabledFor(level):
            _log(level, account, method, scope["path"][:MAX_PATH] if route == "other" else route, trace_id)


def _log(level: int, account: Account, method: str, route: str, trace_id: str | None) -> None:
    """One line of what was asked and what came of it; nothing of a body is ever in it, nor of a query."""
    ms = round(account.seconds * 1e3, 1)
    fields: dict[str, Any] = {"method": method, "route": route, "status": account.status, "ms": ms}
    fields["client"] = account.client
    words = f"{method} {route} {account.status} in {ms:.0f} ms"
    if account.metrics:
        given, made, cached = account.prompt_tokens, account.completion_tokens, account.cached_tokens
        fields |= {"prompt_tokens": given, "completion_tokens": made, "cached_tokens": cached}
        words += f", {given} + {made} tokens"
    if account.finish_reasons:
        reasons = ", ".join(dict.fromkeys(account.finish_reasons))
        fields["finish_reason"] = reasons
        words += f", {reasons}"
    if code := account.code:
        fields["error"] = code
        words += f", {code}"
    words += f", from {account.client}"
    if account.key:
        fields["key"] = account.key
        words += f" with {account.key}"
    if trace_id is not None:
        fields["trace_id"] = trace_id
    access.log(level, "%s", words, extra=log.about(account.request_id, **fields))


def _request_id(given: str | None) -> str:
    """The client's own when it is short and printable (it only travels back), else a fresh one."""
    if given and len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable() and " " not in given:
        return given
    return uuid.uuid4().hex
