"""Where a request comes from: the address of the connection, or, where that is a trusted proxy's, the one it names.

Invariant: what a client writes into X-Forwarded-For or Forwarded counts for nothing. The headers are read from their
end, where the proxy beside this server has written, and only as far as every hop is trusted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

from octavo.errors import ConfigError

UNIX = "unix"
"""The address of who comes over a Unix socket, in logs and in --trusted-proxies."""
_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*(?:"([^"]*)"|([^;\s"]*))', re.IGNORECASE)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """`given`: the values of --trusted-proxies. Raises ConfigError for what is no address or network."""

    def __init__(self, given: Sequence[str]) -> None:
        self._unix = UNIX in given
        self._networks = [_network(text) for text in given if text != UNIX]

    def client(self, scope: Scope) -> str:
        """The client's address, without its port; of a Unix socket `unix`."""
        peer = scope.get("client")
        address = _address(str(peer[0])) if peer else None
        nearest = str(address or (peer[0] if peer else None) or UNIX)
        if not (self._trusts(address) if address else self._unix and nearest == UNIX):
            return nearest
        for hop in reversed(_hops(Headers(scope=scope))):
            found = _address(hop)
            if found is None:
                break  # hidden or malformed: nothing before it can be believed
            nearest = str(found)
            if not self._trusts(found):
                break
        return nearest

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _hops(headers: Headers) -> list[str]:
    """Whom each proxy saw, the farthest first. X-Forwarded-For is what most proxies write; Forwarded counts only where
    there is none, so that a client cannot add the one that its proxy leaves alone."""
    if lines := headers.getlist("x-forwarded-for"):
        return ",".join(lines).split(",")
    parts = [part for line in headers.getlist("forwarded") for part in line.split(",")]
    return [(match[1] or match[2] or "") if (match := _FOR.search(part)) else "" for part in parts]


def _address(text: str) -> Address | None:
    """An address with or without a port, an IPv4 one also inside IPv6."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f"--trusted-proxies {text}: not an address or network; write it as 127.0.0.1, 10.0.0.0/8, ::1, or {UNIX}"
        ) from None
