"""What server/http/connection.py uses of uvicorn beyond its documented interface: a version without it must fail here,
not leave a connection without its bounds. The versions allowed are capped in pyproject.toml."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http import flow_control, httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from octavo.server.http.connection import Connection


class _Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def _protocol() -> HttpToolsProtocol:
    config = uvicorn.Config(_app, log_config=None, ws="none", lifespan="off")
    return HttpToolsProtocol(config, ServerState(), {})


def test_the_versions_are_capped() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"uvicorn>=0.30,<0.55"' in text
    assert (0, 30) <= tuple(map(int, uvicorn.__version__.split(".")[:2])) < (0, 55)


def test_what_is_overridden_is_there() -> None:
    overridden = {
        *("connection_made", "connection_lost", "data_received", "eof_received", "pause_writing", "resume_writing"),
        *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body", "on_message_complete"),
        *("on_response_complete", "shutdown", "timeout_keep_alive_handler"),
        *("_start_asgi_task", "_unset_keepalive_if_required"),
    }
    for name in overridden:
        theirs = inspect.signature(getattr(HttpToolsProtocol, name))
        assert len(theirs.parameters) == len(inspect.signature(getattr(Connection, name)).parameters), name
    ours = {name for name in vars(Connection) if name in vars(HttpToolsProtocol) and not name.startswith("__")}
    assert ours <= overridden


def test_a_connection_and_its_requests_have_their_attributes() -> None:
    async def main() -> None:
        made, transport = _protocol(), _Transport()
        made.connection_made(transport)
        named = {
            *("loop", "parser", "connections", "tasks", "transport", "flow", "scheme", "headers", "cycle", "scope"),
            *("pipeline", "timeout_keep_alive", "timeout_keep_alive_task"),
        }
        assert named <= set(vars(made))
        made.data_received(b"POST / HTTP/1.0\r\ncontent-length: 1\r\n\r\nx")
        cycle = made.cycle
        flags = {
            "disconnected": False, "keep_alive": False, "waiting_for_100_continue": False, "more_body": False,
            "response_started": False, "response_complete": False, "chunked_encoding": None,
            "expected_content_length": 0, "body": bytearray(b"x"),
        }  # fmt: skip
        assert {name: getattr(cycle, name) for name in flags} == flags
        assert isinstance(cycle.message_event, asyncio.Event) and cycle.scope["http_version"] == "1.0"
        assert len(made.tasks) == 1
        await asyncio.gather(*made.tasks)
        assert b" 204 " in transport.written and b"connection: close" in transport.written

    asyncio.run(main())


def test_how_a_cycle_decides_on_chunks() -> None:
    """An answer of HTTP/1.0 sets what it looks at."""
    source = inspect.getsource(RequestResponseCycle.send)
    assert "self.chunked_encoding is None and" in source and "num_bytes > self.expected_content_length" in source


def test_what_else_is_used() -> None:
    assert flow_control.HIGH_WATER_LIMIT == 65536
    assert httptools_impl.STATUS_LINE[503] == b"HTTP/1.1 503 Service Unavailable\r\n"
    for name in ("pause_reading", "resume_reading", "pause_writing", "resume_writing", "drain"):
        assert callable(getattr(flow_control.FlowControl, name))
    for name in ("startup", "handle_exit", "run"):
        assert callable(getattr(uvicorn.Server, name))
    config = uvicorn.Config(_app, log_config=None, ws="none")
    config.load()
    assert {"timeout_graceful_shutdown", "backlog", "ssl", "loaded_app", "timeout_keep_alive"} <= set(vars(config))
    assert {"force_exit", "should_exit", "started"} <= set(vars(uvicorn.Server(config)))
