"""What the server's tests share: an app over a fake engine, events of a stream, raw ASGI calls, a live uvicorn."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import msgspec
from patience import PATIENCE_S

from octavo.client.fake import FakeClient
from octavo.config import ServerConfig
from octavo.server.app import create_app
from octavo.server.process import DrainingServer
from octavo.server.routes import SITE

HELLO = [{"role": "user", "content": "hi"}]
TEXT = "Hello! I am a fake engine: ünïcode, 🦊 and\nnew lines work."


class Api:
    """An HTTP client into the app, and the app's insides."""

    def __init__(self, http: httpx.AsyncClient, engine: FakeClient, app: Any) -> None:
        self.http = http
        self.engine = engine
        self.app = app
        self.inflight = app.state.serving.inflight

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def chat(self, **body: Any) -> httpx.Response:
        return await self.post("/v1/chat/completions", **{"messages": HELLO, "temperature": 0, **body})

    async def complete(self, **body: Any) -> httpx.Response:
        return await self.post("/v1/completions", **{"prompt": "abc", "temperature": 0, **body})

    async def raw(self, content: bytes, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        return await self.http.post(path, content=content, headers={"content-type": "application/json", **headers})

    async def settled(self) -> None:
        """Wait until nothing runs in the fake engine; fails after ten seconds."""
        for _ in range(1000):
            if not self.engine.num_running and not len(self.inflight):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{self.engine.num_running} sequences still run")


def named(config: ServerConfig) -> ServerConfig:
    """The server is called `test` here, and `x` by who writes its bytes by hand."""
    return msgspec.structs.replace(config, allowed_hosts=("test", "x", *config.allowed_hosts))


@asynccontextmanager
async def api(config: ServerConfig | None = None, **fake: Any) -> AsyncIterator[Api]:
    engine = FakeClient(**fake)
    app = create_app(engine, named(config or ServerConfig()), SITE)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            found = Api(http, engine, app)
            yield found
            await found.settled()


def run(test: Callable[[Api], Coroutine[Any, Any, None]], config: ServerConfig | None = None, **fake: Any) -> None:
    """Run a coroutine of a test against a fresh app."""

    async def main() -> None:
        async with api(config, **fake) as found:
            await test(found)

    asyncio.run(main())


def events(text: str) -> list[Any]:
    """The data of each event, decoded; [DONE] as it stands."""
    records = text.split("\n\n")
    assert records.pop() == "", "the stream ends inside an event"
    assert all(record.startswith("data: ") for record in records)
    return [r[6:] if r == "data: [DONE]" else json.loads(r[6:]) for r in records]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error body of a refused request, its form checked."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert error["code"] is None or isinstance(error["code"], str)
    assert "Traceback" not in error["message"] and "/octavo/" not in error["message"] and "0x" not in error["message"]
    return error


async def prompt_seen(api: Api, asking: Awaitable[httpx.Response]) -> str:
    """What the model sees of a request that is answered well, its special tokens made short."""
    seen: list[str] = []
    generate = api.engine.generate

    async def spy(prompt: Any, params: Any) -> Any:
        seen.append(api.engine.tokenizer.decode(prompt.token_ids, skip_special_tokens=False))
        return await generate(prompt, params)

    api.engine.generate = spy  # type: ignore[method-assign]
    response = await asking
    api.engine.generate = generate  # type: ignore[method-assign]
    assert response.status_code == 200, response.text
    return seen[0].replace("<|im_start|>", "<").replace("<|im_end|>\n", ">")


class Call:
    """One ASGI request made by hand: what was sent so far, and when the client leaves."""

    def __init__(self, app: Any, path: str, body: dict[str, Any], block_after: int | None = None) -> None:
        self.messages: list[Any] = []
        self.gone = asyncio.Event()
        self.news = asyncio.Event()
        self._block_after = block_after
        self._body: bytes | None = json.dumps(body).encode()
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
            "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "scheme": "http", "headers": [(b"content-type", b"application/json")], "server": ("test", 80),
            "client": ("test", 1),
        }  # fmt: skip
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)
        self.news.set()
        if self._block_after is not None and len(self.messages) > self._block_after:
            await asyncio.Event().wait()

    async def sent(self, count: int) -> None:
        while len(self.messages) < count:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), PATIENCE_S)

    async def leave(self) -> None:
        self.gone.set()
        await asyncio.wait_for(self.task, PATIENCE_S)

    @property
    def text(self) -> str:
        return b"".join(m.get("body", b"") for m in self.messages).decode()


class Live:
    """A real uvicorn on 127.0.0.1 in a thread."""

    def __init__(self, config: ServerConfig, **fake: Any) -> None:
        self.engine = FakeClient(**fake)
        self.app = create_app(self.engine, named(config), SITE)
        self.server = DrainingServer(self.app, config)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    @property
    def inflight(self) -> Any:
        return self.app.state.serving.inflight

    def until(self, happens: Callable[[], Any]) -> None:
        """Wait for it; fails after half a minute."""
        for _ in range(3000):
            if happens():
                return
            time.sleep(0.01)
        raise AssertionError("it did not happen within 30 s")

    def signal(self) -> None:
        """What SIGTERM does."""
        import signal

        self.server.handle_exit(signal.SIGTERM, None)


@contextmanager
def live(config: ServerConfig | None = None, **fake: Any) -> Iterator[Live]:
    found = Live(config or ServerConfig(drain_timeout=5), **fake)
    found.thread.start()
    try:
        for _ in range(500):
            if found.server.started:
                break
            found.thread.join(0.01)
        assert found.server.started
        yield found
    finally:
        if found.thread.is_alive():
            found.signal()
            found.thread.join(PATIENCE_S)
        found.socket.close()
        assert not found.thread.is_alive()
