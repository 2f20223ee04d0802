"""T-LOCAL: no web page drives a server that has no key: by its Host, its Origin, Sec-Fetch-Site or a missing type."""

from __future__ import annotations

import json
from typing import Any

import pytest
from server_harness import HELLO, Api, error_of, run

from octavo.config import ServerConfig

BODY = json.dumps({"messages": HELLO, "max_tokens": 2}).encode()


def asked(config: ServerConfig, path: str = "/v1/chat/completions", method: str = "POST", **headers: str) -> Any:
    found: list[Any] = []

    async def test(api: Api) -> None:
        content = BODY if method == "POST" else None
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        found.append(await api.http.request(method, path, content=content, headers=sent))

    run(test, config)
    return found[0]


JSON = {"content_type": "application/json"}
LOCAL = ServerConfig()
WIDE = ServerConfig(host="0.0.0.0")


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "127.1.2.3", "[::1]:8000", "app.localhost", "test"],
)
def test_own_names(host: str) -> None:
    assert asked(LOCAL, host=host, **JSON).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.5", "0.0.0.0",
     "notlocalhost", "[::2]", "@localhost.evil.example", "localhost@evil.example", "", "[", "1.1"],
)  # fmt: skip
def test_names_that_are_not_ours(host: str) -> None:
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
    ):
        answer = asked(LOCAL, path, method, host=host, **JSON)
        assert error_of(answer, 403)["code"] == "host_not_allowed", (method, path)


def test_probes_answer_by_any_name() -> None:
    assert asked(LOCAL, "/health", "GET", host="pod.cluster.local").status_code == 200


def test_a_server_for_others_answers_to_addresses_and_names_that_are_given() -> None:
    assert asked(WIDE, host="192.168.1.7:8000", **JSON).status_code == 200
    assert asked(WIDE, host="evil.example", **JSON).status_code == 403
    named = ServerConfig(host="0.0.0.0", allowed_hosts=("box.lan",))
    assert asked(named, host="Box.lan:8000", **JSON).status_code == 200
    assert asked(ServerConfig(allowed_hosts=("*",)), host="any.example", **JSON).status_code == 200


FOREIGN: list[dict[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost.evil.example"},
    {"origin": "https://evil.example", "sec_fetch_site": "same-origin"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
    {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},  # a form that is sent
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_pages_of_other_sites(headers: dict[str, str]) -> None:
    answer = asked(LOCAL, host="127.0.0.1:8000", **JSON, **headers)
    assert error_of(answer, 403)["code"] == "cross_site"


def test_pages_that_may() -> None:
    own = {"host": "127.0.0.1:8000", **JSON}
    assert asked(LOCAL, origin="http://127.0.0.1:8000", sec_fetch_site="same-origin", **own).status_code == 200
    assert asked(LOCAL, origin="http://localhost:3000", sec_fetch_site="same-site", **own).status_code == 200
    allowed = ServerConfig(cors_origin=("https://app.example",))
    assert asked(allowed, origin="https://app.example", sec_fetch_site="cross-site", **own).status_code == 200
    assert asked(allowed, origin="https://evil.example", **own).status_code == 403
    link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert asked(LOCAL, "/docs", "GET", host="localhost:8000", **link).status_code == 200


def test_with_a_key_the_key_decides() -> None:
    config = ServerConfig(api_key=("k",))
    headers = {"host": "my.proxy.example", "origin": "https://app.example", "authorization": "Bearer k"}
    assert asked(config, **headers, **JSON).status_code == 200
    assert asked(config, host="my.proxy.example", **JSON).status_code == 401


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_json_is_declared_as_such(kind: str) -> None:
    headers = {"content_type": kind} if kind else {}
    assert error_of(asked(LOCAL, host="localhost", **headers), 415)["code"] == "unsupported_media_type"
