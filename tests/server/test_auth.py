"""T-KEY, T-ROUTES, T-SALT: with a key set, only probes and static pages answer without it; keys share nothing."""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import os
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from server_harness import Api, api, error_of, run

from octavo.config import ServerConfig
from octavo.config.keys import MAX_KEY_LEN, api_keys, bare, with_keys_read
from octavo.errors import ConfigError
from octavo.server.http import auth
from octavo.server.routes import ENDPOINTS
from octavo.types import SamplingParams

KEYS = ("sk-first-0123456789", "sk-second-abcdefghi")
GUARDED = ServerConfig(api_key=KEYS)
ADMITTED = {"authorization": f"Bearer {KEYS[0]}"}


def refused(response: httpx.Response, method: str = "POST") -> None:
    if method == "HEAD":
        assert response.status_code == 401
    elif "/v1/messages" in response.url.path and "type" in response.json():
        assert response.status_code == 401 and response.json()["error"]["type"] == "authentication_error"
    else:
        error = error_of(response, 401)
        assert error["code"] == "invalid_api_key" and error["type"] == "invalid_request_error"
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": KEYS[0]},
        {"authorization": f"Basic {KEYS[0]}"},
        {"authorization": f"Bearer {KEYS[0]}x"},
        {"authorization": f"Bearer {KEYS[0][:-1]}"},
        {"authorization": f"Bearer {KEYS[0].upper()}"},
        {"authorization": f"Bearer {KEYS[0]},{KEYS[1]}"},
        {"authorization": f"Bearer {KEYS[0]} {KEYS[1]}"},
        {"authorization": "Bearer sk-\xfc\xff"},
        {"x-api-key": "wrong"},
        {"x-api-key": ""},
        {"api-key": KEYS[0]},
        {"cookie": f"authorization=Bearer {KEYS[0]}"},
    ],
)
def test_key_wrong_or_missing_is_401(headers: dict[str, str]) -> None:
    """T-KEY"""

    async def test(api: Api) -> None:
        sent = {name: value.encode("latin-1") for name, value in headers.items()}
        response = await api.http.get("/v1/models", headers=sent)  # type: ignore[arg-type]
        refused(response, "GET")
        assert not any(key in response.text for key in KEYS) and "wrong" not in response.text

    run(test, GUARDED)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEYS[0]}"},
        {"authorization": f"bearer   {KEYS[1]} "},
        {"x-api-key": KEYS[1]},
        {"x-api-key": KEYS[0], "authorization": "Bearer what-a-proxy-put-there"},
    ],
)
def test_key_of_either_header_opens(headers: dict[str, str]) -> None:
    """T-KEY"""

    async def test(api: Api) -> None:
        assert (await api.http.get("/v1/models", headers=headers)).status_code == 200
        assert (await api.http.get("/nowhere", headers=headers)).status_code == 404

    run(test, GUARDED)


def test_key_is_compared_in_constant_time_with_all_keys() -> None:
    """T-KEY: by compare_digest on digests, and the loop over them has no way out before its end."""
    tree = ast.parse("class C:\n" + inspect.getsource(auth.Callers.find))
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    assert not any(isinstance(node, ast.Break | ast.Return) for loop in loops for node in ast.walk(loop))
    assert "compare_digest(digest, known)" in ast.unparse(tree)
    compared = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    assert all("key" not in ast.unparse(node) for node in compared)


ODD_PATHS = [
    "/", "//", "//v1/models", "/V1/models", "/v1/models/", "/v1//models", "/./v1/models", "/v1/../v1/models",
    "/health/", "//health", "/HEALTH", "/health/x", "/health;x", "/health%00", "/health%2f", "/%2fhealth",
    "/v1/models%3f", "/%76%31/models", "/docs/", "/openapi.json/", "/favicon.ico", "/admin",
]  # fmt: skip
OPEN = {"/health", "/live", "/ready", "/docs", "/openapi.json"}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]


def test_routes_are_all_closed_without_a_key() -> None:
    """T-ROUTES: every route, every odd spelling and every method, also a preflight where no origin is allowed."""
    paths = [endpoint.path.replace("{model:path}", "fake-model").replace("{id}", "x") for endpoint in ENDPOINTS]
    preflight = {"origin": "http://x", "access-control-request-method": "POST"}

    async def test(api: Api) -> None:
        for path in [*paths, *(path.removeprefix("/v1") for path in paths), *ODD_PATHS]:
            for method in METHODS:
                if path in OPEN and method in ("GET", "HEAD"):
                    continue
                refused(await api.http.request(method, "http://test" + path, headers=preflight), method)
        for spelling in ("/health", "/health?x=1", "/%68ealth"):
            assert (await api.http.get("http://test" + spelling)).json() == {"status": "healthy", "service": "octavo"}
        for path in OPEN:
            assert (await api.http.get(path)).status_code == (await api.http.head(path)).status_code == 200
        assert "fake-model" not in (await api.http.get("/openapi.json")).text  # what is served is told to key holders
        assert api.engine.num_running == 0

    run(test, GUARDED)
    assert {endpoint.path for endpoint in ENDPOINTS if endpoint.is_open} == OPEN


def test_routes_of_the_application_are_those_of_the_table() -> None:
    """T-ROUTES: nothing is mounted beside the table, so nothing is reached past the gate."""

    async def test(api: Api) -> None:
        table = {endpoint.path for endpoint in ENDPOINTS}
        shorter = {path.removeprefix("/v1") for path in table}  # answered too, by the same handlers
        assert table <= {route.path for route in api.app.routes} <= table | shorter
        stack = api.app.build_middleware_stack()
        names = []
        while hasattr(stack, "app"):
            names.append(type(stack).__name__)
            stack = stack.app
        assert names.index("Gate") < names.index("ExceptionMiddleware")

    run(test, GUARDED)


def test_key_refuses_before_the_body_is_looked_at() -> None:
    async def test(api: Api) -> None:
        refused(await api.raw(b"{not json"))
        refused(await api.raw(b"x" * 100_000, **{"content-type": "text/plain"}))

    run(test, GUARDED)


def test_without_keys_all_is_open_and_any_key_is_taken() -> None:
    async def test(api: Api) -> None:
        assert (await api.http.get("/v1/models")).status_code == 200
        assert (await api.http.get("/v1/models", headers={"authorization": "Bearer anything"})).status_code == 200

    run(test)


def test_keys_are_never_logged_or_answered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def test(api: Api) -> None:
        api.http.headers.update(ADMITTED)
        texts = []
        for endpoint in ENDPOINTS:
            response = await api.http.request(endpoint.method, endpoint.path, json=endpoint.example)
            texts.append(response.text + str(response.headers))
        await api.http.get("/v1/models", headers={"authorization": "Bearer sk-a-mistyped-key"})
        digests = [auth._digest("octavo owner", key) for key in KEYS]
        for secret in (*KEYS, "sk-a-mistyped-key", *digests):
            assert secret not in caplog.text and not any(secret in text for text in texts)

    run(test, GUARDED)


def salts(config: ServerConfig, *requests: tuple[str, dict[str, Any]]) -> list[str | None]:
    """With which cache salt each request came to the engine."""
    found: list[str | None] = []

    async def main() -> None:
        async with api(config) as server:
            generate = server.engine.generate

            async def spy(prompt: Any, params: SamplingParams) -> Any:
                found.append(params.cache_salt)
                return await generate(prompt, params)

            server.engine.generate = spy  # type: ignore[method-assign]
            for key, body in requests:
                for path, more in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": HELLO})):
                    headers = {"x-api-key": key}
                    response = await server.http.post(path, json={**more, "max_tokens": 1, **body}, headers=headers)
                    assert response.status_code == 200, response.text

    asyncio.run(main())
    return found


HELLO = [{"role": "user", "content": "hi"}]


def test_salt_of_each_key_is_its_own() -> None:
    """T-SALT: no key can name another's salt, not even by sending it as its own."""
    first, _, again, _, second, _, own, _ = salts(
        GUARDED, (KEYS[0], {}), (KEYS[0], {}), (KEYS[1], {}), (KEYS[0], {"cache_salt": "x"})
    )
    assert first == again and first != second and own not in (first, second) and first and second
    guessed, *_ = salts(GUARDED, (KEYS[1], {"cache_salt": first}))
    assert guessed not in (first, second)
    long, *_ = salts(GUARDED, (KEYS[1], {"cache_salt": "y" * 256}))
    assert long is not None and len(long) <= 256


def test_salt_is_the_clients_without_keys_or_when_prefixes_are_shared() -> None:
    """T-SALT"""
    assert salts(ServerConfig(), ("any", {}), ("any", {"cache_salt": "x"})) == [None, None, "x", "x"]
    shared = msgspec.structs.replace(GUARDED, share_prefix_cache=True)
    assert salts(shared, (KEYS[0], {}), (KEYS[1], {"cache_salt": "x"})) == [None, None, "x", "x"]


# -- where keys come from


def keys_of(config: ServerConfig) -> tuple[str, ...]:
    return tuple(key for _, key in api_keys(config))


@pytest.mark.parametrize(
    "text,name,key",
    [
        ("alice: sk-1", "alice", "sk-1"),
        ("alice = sk-1", "alice", "sk-1"),
        ("alice =sk-1", "alice", "sk-1"),
        ("team.a@example-1:\tsk-1", "team.a@example-1", "sk-1"),
        ("sk-1", "key-1", "sk-1"),
        ("alice:sk-1", "key-1", "alice:sk-1"),  # was a key before keys had names, and stays one
        ("c2stMQ==", "key-1", "c2stMQ=="),
        ("alice: sk:1=", "alice", "sk:1="),
    ],
)
def test_keys_may_have_names(tmp_path: Path, text: str, name: str, key: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{text}\n")
    file.chmod(0o600)
    for config in (ServerConfig(api_key=(text,)), ServerConfig(api_key_file=str(file))):
        assert api_keys(config) == api_keys(with_keys_read(config)) == ((name, key),)
    assert bare(text) == key


def test_names_of_keys_are_numbers_where_there_are_none_and_never_two() -> None:
    given = ("sk-a", "bob: sk-b", "sk-c", "sk-a", "bob: sk-b2", "sk-b")
    assert [name for name, _ in api_keys(ServerConfig(api_key=given))] == ["key-1", "bob", "key-3", "bob"]
    with pytest.raises(ConfigError, match="called bob and eve") as caught:
        api_keys(ServerConfig(api_key=("bob: sk-b", "eve: sk-b")))
    assert "sk-b" not in caught.value.message


def test_the_access_log_names_key_and_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo")
    config = ServerConfig(api_key=(f"alice: {KEYS[0]}", KEYS[1]), trusted_proxies=("127.0.0.1",))

    async def test(api: Api) -> None:
        for key in KEYS:
            headers = {"x-api-key": key, "x-forwarded-for": "6.6.6.6, 203.0.113.7"}
            await api.http.get("/v1/models", headers=headers)
        await api.http.get("/v1/models", headers={"x-api-key": "alice"})

    run(test, config)
    first, second, third = [record for record in caplog.records if record.name == "octavo.access"]
    assert first.getMessage().endswith("from 203.0.113.7 with alice") and first.fields["key"] == "alice"
    assert first.fields["client"] == "203.0.113.7" and second.fields["key"] == "key-2"
    assert third.fields["status"] == 401 and "key" not in third.fields


def test_key_file_and_option_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("\ufeff# ours\n\nsk-a\n  sk-b  \r\n#sk-no\nsk-a\n")
    file.chmod(0o600)
    config = ServerConfig(api_key=("sk-c", "sk-a"), api_key_file=str(file))
    assert keys_of(config) == ("sk-c", "sk-a", "sk-b")
    read = with_keys_read(config)
    assert read.api_key_file is None and keys_of(read) == ("sk-c", "sk-a", "sk-b")
    assert not caplog.records
    file.chmod(0o644)
    api_keys(config)
    assert "chmod 600" in caplog.text and "sk-" not in caplog.text


@pytest.mark.parametrize(
    "content,needle",
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "holds no key"),
        (b"# only\n\n", "holds no key"),
        (b"two words\n", "line 1: a key is printable ASCII without blanks"),
        (b"ok\nsch\xc3\xb6n\n", "line 2: a key is printable ASCII without blanks"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"k" * (MAX_KEY_LEN + 1), "at most"),
        (b"#" * (2 << 20), "more than"),
    ],
)
def test_key_file_that_is_wrong_starts_nothing(tmp_path: Path, content: bytes | None, needle: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        api_keys(ServerConfig(api_key_file=str(file)))
    assert needle in caught.value.message and str(file) in caught.value.message
    assert "two words" not in caught.value.message


def test_key_file_must_be_readable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        api_keys(ServerConfig(api_key_file=str(tmp_path)))
    if os.geteuid() != 0:
        file = tmp_path / "keys"
        file.write_text("sk")
        file.chmod(0)
        with pytest.raises(ConfigError, match="Permission denied"):
            api_keys(ServerConfig(api_key_file=str(file)))


@pytest.mark.parametrize("key", ["", "a b", "schön", "tab\t"])
def test_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(ConfigError, match="--api-key: a key is printable ASCII"):
        api_keys(ServerConfig(api_key=(key,)))


def test_the_engine_is_told_whose_each_request_is() -> None:
    """T-FAIR: what waits is taken key by key, so the key has to reach the engine."""

    async def test(api: Api) -> None:
        owners: list[str] = []
        enter = api.engine._ledger.enter

        def spy(request: Any, limit: int | None = None) -> None:
            owners.extend(sequence.add.owner for sequence in request.unfinished())
            enter(request, limit)

        api.engine._ledger.enter = spy  # type: ignore[method-assign]
        for key in (*KEYS, KEYS[0]):
            headers = {"authorization": f"Bearer {key}"}
            for path in ("/v1/completions", "/v1/responses"):
                body = {"prompt": "a", "max_tokens": 1} if "comp" in path else {"input": "a", "max_output_tokens": 1}
                assert (await api.http.post(path, json=body, headers=headers)).status_code == 200
        first, _, second, *_ = owners
        assert owners == [first, first, second, second, first, first] and first != second and first and second
        assert not any(key in owner for key in KEYS for owner in owners)

    run(test, GUARDED)
