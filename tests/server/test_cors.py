"""T-CORS: a browser shows our answers to the pages of the named origins, and to no other."""

from __future__ import annotations

import httpx
import pytest
from server_harness import Api, error_of, events, run

from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.server.http.cors import checked_origins

ALLOWED = ("http://localhost:3000", "https://app.example.com")
CONFIG = ServerConfig(cors_origin=ALLOWED, api_key=("k",))
KEY = {"authorization": "Bearer k"}
WRONG = [
    "http://notlocalhost:3000", "http://localhost.evil.com:3000", "http://localhost:3001", "http://localhost",
    "https://localhost:3000", "null", "HTTP://LOCALHOST:3000", "http://localhost:3000.evil.com", "http://evil.com",
    "http://localhost:3000@evil.com", "http://localhost:30000", "https://app.example.com.evil.com", "file://",
    "https://app.example.com:443", "https://xapp.example.com", "https://app-example.com", "", "*",
    "http://localhost:3000, http://evil.com", "http://localhost:3000/", "https://x.app.example.com",
]  # fmt: skip


def shown_to(response: httpx.Response) -> str | None:
    assert "access-control-allow-credentials" not in response.headers
    return response.headers.get("access-control-allow-origin")


def preflight(origin: str, method: str = "POST") -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization, content-type, x-stainless-lang",
    }


@pytest.mark.parametrize("origin", ALLOWED)
def test_cors_named_origin(origin: str) -> None:
    async def test(api: Api) -> None:
        asked = await api.http.options("/v1/chat/completions", headers=preflight(origin))
        assert asked.status_code == 200 and shown_to(asked) == origin and "Origin" in asked.headers["vary"]
        assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
        assert "POST" in asked.headers["access-control-allow-methods"] and asked.headers["x-request-id"]
        headers = {"origin": origin, **KEY}
        answer = await api.http.get("/v1/models", headers=headers)
        assert answer.status_code == 200 and shown_to(answer) == origin and "Origin" in answer.headers["vary"]
        assert "x-request-id" in answer.headers["access-control-expose-headers"]

    run(test, CONFIG)


@pytest.mark.parametrize("origin", WRONG)
def test_cors_other_origins(origin: str) -> None:
    """T-CORS: notlocalhost, localhost.evil.com, null, another case, another port."""

    async def test(api: Api) -> None:
        asked = await api.http.options("/v1/chat/completions", headers=preflight(origin))
        assert error_of(asked, 400)["code"] == "cors" and shown_to(asked) is None
        answer = await api.http.get("/v1/models", headers={"origin": origin, **KEY})
        assert answer.status_code == 200 and shown_to(answer) is None and "Origin" in answer.headers["vary"]

    run(test, CONFIG)


def test_cors_errors_and_streams_carry_the_headers_too() -> None:
    """A page is to see why it was refused."""
    origin = ALLOWED[0]

    async def test(api: Api) -> None:
        headers = {"origin": origin, "content-type": "application/json", **KEY}
        asked = [
            (401, api.http.get("/v1/models", headers={"origin": origin})),
            (404, api.http.get("/nowhere", headers=headers)),
            (405, api.http.get("/v1/completions", headers=headers)),
            (400, api.http.post("/v1/completions", content=b"{", headers=headers)),
            (413, api.http.post("/v1/completions", content=b" " * 2000, headers=headers)),
            (415, api.http.post("/v1/completions", content=b"x", headers={**headers, "content-type": "text/plain"})),
        ]
        for status, call in asked:
            answer = await call
            error_of(answer, status)
            assert shown_to(answer) == origin
        body = {"prompt": "a", "stream": True, "max_tokens": 3}
        answer = await api.http.post("/v1/completions", json=body, headers=headers)
        assert shown_to(answer) == origin and events(answer.text)[-1] == "[DONE]"

        async def broken() -> None:
            raise ZeroDivisionError

        api.app.state.serving.models[0].client.generate = broken
        answer = await api.http.post("/v1/completions", json={"prompt": "a"}, headers=headers)
        error_of(answer, 500)
        assert shown_to(answer) == origin

    run(test, ServerConfig(cors_origin=ALLOWED, api_key=("k",), max_body_size="1KiB"))


def test_cors_is_off_unless_asked_for() -> None:
    async def test(api: Api) -> None:
        asked = await api.http.options("/v1/chat/completions", headers=preflight("http://localhost:3000"))
        assert asked.status_code == 403 and shown_to(asked) is None
        assert shown_to(await api.http.get("/v1/models", headers={"origin": "http://localhost:3000"})) is None

    run(test)


def test_cors_of_all_never_with_credentials() -> None:
    async def test(api: Api) -> None:
        for origin in ("http://anyone.example", "null"):
            headers = {"origin": origin, "cookie": "session=1"}
            assert shown_to(await api.http.get("/v1/models", headers=headers)) == "*"
            assert shown_to(await api.http.options("/v1/models", headers=preflight(origin, "GET"))) == "*"

    run(test, ServerConfig(cors_origin=("*",)))


def test_origins_are_checked_when_the_server_starts() -> None:
    given = ("HTTP://LocalHost:3000/", "https://a.example:443", "http://[::1]:80", "*")
    assert checked_origins(given) == ["http://localhost:3000", "https://a.example", "http://[::1]", "*"]
    for wrong in (
        "localhost:3000",
        "null",
        "https://a.example/path",
        "https://*.example",
        "ftp://x",
        "http://",
        "http://x:y",
    ):
        with pytest.raises(ConfigError, match=r"--cors-origin .*not an origin"):
            checked_origins((wrong,))
