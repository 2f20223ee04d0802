"""Who asks: the gate that every request but the open paths passes with a key, and what the key stands for.

The gate is middleware, before routing: a path that no route matches, a method that none takes, an odd spelling of a
path are all behind it. Invariants: a key is compared by its digest, in constant time, with every key there is; neither
a key nor a digest of it is ever logged or answered.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.config.keys import ApiKey
from octavo.errors import ApiError
from octavo.server.core.errors import Refused
from octavo.server.core.limits import Quota, Ticket
from octavo.server.http.cors import PREFLIGHT
from octavo.server.http.failures import Failure, account_of
from octavo.types import SamplingParams


class InvalidApiKey(Refused, status=401, code="invalid_api_key"):
    """The key is missing, or none of the server's."""


@dataclass(frozen=True)
class Caller:
    """One key's owner. `owner` names it where state is kept apart by keys, `name` in logs."""

    owner: str
    quota: Quota
    name: str
    salted: bool

    def own(self, params: SamplingParams) -> SamplingParams:
        """The parameters with a cache salt that no other key can give, whatever it sends: who shares a cached prefix
        can tell by the time of an answer what others have asked."""
        if not self.salted:
            return params
        salt = _digest("octavo cache salt", self.owner, params.cache_salt or "")
        return msgspec.structs.replace(params, cache_salt=salt)


class Callers:
    """All of them; without keys there is one, for everybody."""

    def __init__(self, keys: Sequence[ApiKey], quotas: Sequence[Quota], *, share_prefix_cache: bool = False) -> None:
        """`quotas`: one for each key, or one without keys."""
        self._digests = [hashlib.sha256(key.encode()).digest() for _, key in keys]
        owners = [(name, _digest("octavo owner", key)) for name, key in keys] or [("", "")]
        salted = bool(keys) and not share_prefix_cache
        self._callers = [
            Caller(owner, quota, name, salted) for (name, owner), quota in zip(owners, quotas, strict=True)
        ]
        self.have_keys = bool(keys)

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, headers: Headers) -> Caller | None:
        """By `Authorization: Bearer KEY` or `x-api-key: KEY`; None when neither is one of the keys."""
        if not self._digests:
            return self._callers[0]
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = (bearer.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "").strip())
        found = -1
        for candidate in given:
            digest = hashlib.sha256(candidate.encode("latin-1")).digest()
            for index, known in enumerate(self._digests):  # all of them: the time says nothing about which one it is
                if secrets.compare_digest(digest, known):
                    found = index
        return self._callers[found] if found >= 0 else None


@dataclass(eq=False)
class Gate:
    """Lets nobody in without a key, except to `open_paths`, and counts what each key asks for.

    Answers itself instead of raising, so that what surrounds it sees an ordinary answer.
    """

    app: ASGIApp
    callers: Callers
    open_paths: frozenset[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["method"] in ("GET", "HEAD") and scope["path"] in self.open_paths):
            await self.app(scope, receive, send)
            return
        if (preflight := scope.get(PREFLIGHT)) is not None:  # browsers send it without a key
            await preflight(scope, receive, send)
            return
        headers = Headers(scope=scope)
        caller = self.callers.find(headers)
        if caller is None:
            await _refusal(headers)(scope, receive, send)
            return
        account = account_of(scope)
        account.owner, account.key = caller.owner, caller.name
        if scope["method"] == "POST":
            await self._metered(caller, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _metered(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        account, quota = account_of(scope), caller.quota
        account.allowance = ticket = Ticket(quota, caller.own)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(quota.headers())
            await send(message)

        sending = send_with_limits if quota.requests or quota.tokens else send
        try:
            ticket.enter()
        except ApiError as error:
            await Failure(error)(scope, receive, sending)
            return
        try:
            await self.app(scope, receive, sending)
        finally:
            ticket.leave(account.prompt_tokens + account.completion_tokens)


def _refusal(headers: Headers) -> ASGIApp:
    if "authorization" in headers or "x-api-key" in headers:
        message = "the API key is not one of this server's; check the key that the client sends"
    else:
        message = "an API key is required; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
    return Failure(InvalidApiKey(message), {"www-authenticate": "Bearer"})


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
