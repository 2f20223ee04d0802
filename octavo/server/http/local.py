"""A server without API keys answers those who mean it: no web page may reach it through somebody's browser.

Two ways are closed. A page of another site that sends here (its Origin, or Sec-Fetch-Site, says so), unless
--cors-origin allows it. A page whose own name was made to point here, so that the browser takes both for one site: its
name is in Host, which has to be one that this server is known to have. Programs send neither header, or their own.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.errors import ApiError
from octavo.server.core.errors import Refused
from octavo.server.http.cors import PREFLIGHT
from octavo.server.http.failures import Failure

PROBES = frozenset({"/live", "/health", "/ready"})
"""Asked by names that only a cluster knows; they tell nothing."""


class HostNotAllowed(Refused, status=403, code="host_not_allowed"):
    """The name that the request was sent to is none of the server's."""


class CrossSite(Refused, status=403, code="cross_site"):
    """A page of another site asks."""


class Local:
    """`bound`: the address that is listened on, None for a Unix socket. `names`: further hosts; * is any. `origins`: of
    --cors-origin."""

    def __init__(self, app: ASGIApp, bound: str | None, names: Sequence[str], origins: Sequence[str]) -> None:
        self.app = app
        self._bound = (bound or "").lower()
        self._takes_any = bound is None or "*" in names
        self._is_wide = not _is_loopback(self._bound)
        """It listens beyond this machine."""
        self._names = {name.lower().rstrip(".") for name in names} | {self._bound}
        if self._is_wide:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and PREFLIGHT not in scope:
            headers = Headers(scope=scope)
            refusal = self._host(headers, scope["path"]) or self._site(headers, scope["method"])
            if refusal is not None:
                await Failure(refusal)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _host(self, headers: Headers, path: str) -> ApiError | None:
        given = headers.get("host")
        if given is None or self._takes_any or path in PROBES:  # a browser always sends it
            return None
        name = _hostname(f"//{given}")
        if name in self._names or _is_loopback(name) or (self._is_wide and _address(name) is not None):
            return None
        return HostNotAllowed(
            f"Host {given[:100]!r} is none of this server's names; if it is meant, start the server with "
            "--allowed-hosts, or with an API key"
        )

    def _site(self, headers: Headers, method: str) -> ApiError | None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is None:
            is_foreign = site == "cross-site"
            if is_foreign and method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate":
                return None  # somebody follows a link to a page of this server's
        elif origin.lower() in self._origins or "*" in self._origins:
            return None
        else:
            theirs, ours = _hostname(origin), _hostname(f"//{headers.get('host', '')}")
            is_foreign = theirs != ours and not (_is_loopback(theirs) and _is_loopback(ours))
        if not is_foreign:
            return None
        return CrossSite(
            f"a web page of another site{f' ({origin[:100]})' if origin else ''} asked through a browser; if it may, "
            "start the server with --cors-origin"
        )


def _hostname(url: str) -> str:
    """Lower case, without brackets and a final dot; empty where there is none."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or ((at := _address(name)) is not None and at.is_loopback)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
