"""T-LOG: a log names the client as its connection or a trusted proxy does, never as the client itself pleases."""

from __future__ import annotations

import pytest

from octavo.errors import ConfigError
from octavo.server.http.forwarded import Proxies

PROXY = "10.0.0.9"
TRUSTED = ("10.0.0.0/8", "::1", "unix")


def client(peer: str | None, trusted: tuple[str, ...] = TRUSTED, **headers: str) -> str:
    sent = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Proxies(trusted).client({"client": (peer, 1234) if peer else None, "headers": sent})


def test_without_trust_the_connection_counts() -> None:
    for peer, shown in (("203.0.113.7", "203.0.113.7"), ("::ffff:203.0.113.7", "203.0.113.7"), (None, "unix")):
        for trusted in ((), ("192.168.0.0/16",)):
            assert client(peer, trusted, x_forwarded_for="1.2.3.4", forwarded="for=1.2.3.4") == shown
    assert client("203.0.113.7", x_forwarded_for="1.2.3.4") == "203.0.113.7"


@pytest.mark.parametrize(
    "given,shown",
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7", "203.0.113.7"),  # the client's own, before what the proxy has added
        ("6.6.6.6, 203.0.113.7, 10.1.2.3", "203.0.113.7"),  # two proxies
        ("10.3.3.3, 10.1.2.3", "10.3.3.3"),  # a client among the trusted
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("nonsense", PROXY),
        ("203.0.113.7, nonsense", PROXY),
        ("203.0.113.7, nonsense, 10.1.2.3", "10.1.2.3"),
        ("", PROXY),
        (",,,", PROXY),
        ("\u00fc", PROXY),
        ("10.0.0.1\n", "10.0.0.1"),
    ],
)
def test_a_trusted_proxy_names_its_client(given: str, shown: str) -> None:
    assert client(PROXY, x_forwarded_for=given) == shown
    assert client(None, x_forwarded_for=given) == shown.replace(PROXY, "unix")


@pytest.mark.parametrize(
    "given,shown",
    [
        ("for=203.0.113.7", "203.0.113.7"),
        ('For="[2001:db8::1]:47011";proto=https', "2001:db8::1"),
        ("proto=https;for=203.0.113.7;by=10.0.0.1", "203.0.113.7"),
        ("for=6.6.6.6, for=203.0.113.7, for=10.1.1.1", "203.0.113.7"),
        ("for=unknown", PROXY),
        ("for=203.0.113.7, for=_hidden", PROXY),
        ("by=203.0.113.7", PROXY),
        ('for="', PROXY),
    ],
)
def test_forwarded_is_read_where_nothing_else_is(given: str, shown: str) -> None:
    assert client(PROXY, forwarded=given) == shown
    assert client(PROXY, forwarded=given, x_forwarded_for="203.0.113.99") == "203.0.113.99"


def test_a_long_header_costs_little_and_names_nobody() -> None:
    assert client(PROXY, x_forwarded_for="1.2.3.4, " + "10.0.0.1, " * 6000 + "x") == PROXY


@pytest.mark.parametrize("wrong", ["proxy.example", "10.0.0.0/33", "*", "10.0.0.1:80"])
def test_what_is_no_network_starts_nothing(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"--trusted-proxies .*: not an address or network"):
        Proxies((wrong,))
