"""`--log-requests`: of every POST request a line when it begins and one when it has ended, with sizes and times; at log
level debug the texts of both, too.

Made for finding out what a client really sends, and which request it was that never ended. Invariants: without the
option nothing here runs; texts are logged at debug only, and no more of them than MAX_TEXT; a header is never logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo import log
from octavo.server.core.account import Account
from octavo.server.http.failures import account_of
from octavo.server.http.sse import CONNECTION

logger = logging.getLogger("octavo.requests")

MAX_TEXT = 1 << 16
"""Bytes of each text."""
MAX_PATH = 128
_TIMES = ("queue_ms", "prefill_ms", "time_to_first_token_ms", "decode_ms")
_ASKED = ("n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")


@dataclass(eq=False)
class RequestLog:
    """Stands inside what gives a request its account and around what reads its body. `paths`: endpoint → route."""

    app: ASGIApp
    paths: Mapping[Any, str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        account = account_of(scope)
        asked, given = _Text(), _Text()
        path = scope["path"][:MAX_PATH]
        what = log.about(account.request_id, event="begins", method="POST", path=path, client=account.client)
        logger.info("POST %s begins, from %s", path, account.client, extra=what)

        async def counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                asked.add(message.get("body", b""))
                if not message.get("more_body", False):
                    asked.show("asked", account.request_id)
            return message

        scope[CONNECTION] = _counting(scope[CONNECTION], given)  # the parts of a stream go there, past all middleware
        try:
            await self.app(scope, counted, _counting(send, given))
        finally:
            given.show("answered", account.request_id)
            route = self.paths.get(scope.get("endpoint"), path)
            _ended(account, route, asked.num_bytes, given.num_bytes)


def _counting(send: Send, given: _Text) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.body":
            given.add(message.get("body", b""))
        await send(message)

    return sent


class _Text:
    """What came or went: how much it is, and its beginning where it is to be shown."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._kept = bytearray()
        self._is_kept = logger.isEnabledFor(logging.DEBUG)

    def add(self, data: bytes) -> None:
        self.num_bytes += len(data)
        if self._is_kept:
            self._kept += data[: MAX_TEXT - len(self._kept)]

    def show(self, what: str, request_id: str) -> None:
        if self._is_kept and self.num_bytes:
            rest = f" … and {self.num_bytes - len(self._kept)} bytes" if self.num_bytes > len(self._kept) else ""
            text = self._kept.decode(errors="replace") + rest
            logger.debug("%s: %s", what, text, extra=log.about(request_id, event=what))


def _ended(account: Account, route: str, num_asked: int, num_given: int) -> None:
    fields: dict[str, Any] = {"event": "ended", "method": "POST", "route": route, "status": account.status}
    fields |= {"client": account.client, "request_bytes": num_asked, "answer_bytes": num_given}
    words = f"POST {route} ended with {account.status}: {num_asked} bytes in, {num_given} out"
    if account.key:
        fields["key"] = account.key
    if params := account.params:
        fields |= {name: value for name in _ASKED if (value := getattr(params, name)) is not None}
        words += f", n {params.n}, max_tokens {params.max_tokens}"
    if account.metrics:
        given, cached, made = account.prompt_tokens, account.cached_tokens, account.completion_tokens
        fields |= {"prompt_tokens": given, "cached_tokens": cached, "completion_tokens": made}
        words += f", {given} tokens in ({cached} cached), {made} out"
        for name in _TIMES:  # the longest: the prompts of a request run beside each other
            fields[name] = round(max(float(getattr(one, name)) for one in account.metrics), 1)
        words += ", waited {queue_ms:.0f} ms, first token after {time_to_first_token_ms:.0f} ms".format_map(fields)
        words += ", prefill {prefill_ms:.0f} ms, decode {decode_ms:.0f} ms".format_map(fields)
    if code := account.code:
        fields["error"] = code
        words += f", {code}"
    logger.info("%s", words, extra=log.about(account.request_id, **fields))
