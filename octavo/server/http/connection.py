"""One connection: uvicorn's protocol over httptools, with the bounds that both leave open.

httptools sets no limit to a request's line, its headers, the extensions of a chunk or the trailers; uvicorn none to the
time that a head may take, to idle connections that never ask, to pipelined requests, or to a reader that takes nothing.
Invariants: what a connection holds in memory is bounded; it always waits with a timer, unless the application works for
it; after a refusal nothing more of it is read, and nothing is ever put into an answer that has begun.
"""

from __future__ import annotations

import asyncio
import logging
import select
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from octavo.config import ServerConfig
from octavo.config.sizes import parse_bytes
from octavo.errors import ApiError, RequestError, Unavailable
from octavo.server.core.errors import Refused, RequestTimeout
from octavo.server.http.deadline import Deadline

logger = logging.getLogger("octavo.server")

MAX_HEADERS = 256
MAX_PIPELINED = 8
"""Requests that wait on one connection for the answer before theirs."""
BYTES_PER_S = 2048
"""A reader that takes so much is slow, but reads."""
RETRY_AFTER_S = 5
FIRST_LOOK_S, LAST_LOOK_S = 0.05, 1.0
"""After so long, then twice as long …, a connection whose client has said all it will is looked at: nothing else tells
that it is gone."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class HeadTooLarge(Refused, status=431, code="request_header_fields_too_large"):
    """The head of a request, or what else is not its body, is beyond the bounds."""


@dataclass(frozen=True)
class Bounds:
    max_connections: int
    max_head: int
    """Bytes of a head, and of whatever else in a request is not its body."""
    head_timeout: float
    send_timeout: float

    @classmethod
    def of(cls, config: ServerConfig) -> Bounds:
        """Raises ConfigError for a wrong size."""
        max_head = parse_bytes(config.max_header_size, "--max-header-size")
        return cls(config.max_connections, max_head, config.header_timeout, config.send_timeout)


class Connection(HttpToolsProtocol):
    """`error_body`: of an answer before any application."""

    def __init__(self, bounds: Bounds, error_body: Callable[[ApiError], bytes], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bounds = bounds
        self.error_body = error_body

    # -- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._in_head = True
        """The next bytes belong to a head, or to nothing."""
        self._head_begun = self._head_was_read = False
        self._head_size = self._num_headers = 0
        self._idle_bytes = 0
        """Received since anything came of it: the head's, then between two pieces of the body."""
        self._head_timer: Deadline | None = None
        self._write_timer: Deadline | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        """Set: no more will come from the client, and it waits for answers."""
        self._refusal: ApiError | None = None
        self._refused = False
        self._unanswered: list[RequestResponseCycle] = []
        if len(self.connections) > self.bounds.max_connections:
            message = f"the server holds {self.bounds.max_connections} connections, its limit; try again shortly"
            self._refuse(Unavailable(message, code="too_many_connections", retry_after=RETRY_AFTER_S))
        else:
            self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._stop_head_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
        if self._look_timer is not None:
            self._look_timer.cancel()
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._idle_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or RequestError("this is not a valid HTTP request", code="invalid_http"))
            logger.debug("refused a request: %s", error)
        if self._refused:
            return
        if self._idle_bytes > self.bounds.max_head:
            self._refuse(self._too_large() if self._in_head else RequestError("the chunks of the body are malformed"))
        elif self._in_head and (self._head_begun or self._idle_bytes) and self._head_timer is None:
            self._head_timer = Deadline(self.loop, self.bounds.head_timeout, self._head_overdue)

    def _parse(self, data: bytes) -> None:
        """A request to go over to HTTP/2 (Java's clients send it with every body) or web sockets is declined by
        answering it. Its parser ends with its head; another one, told how long the body is, goes on from there."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                framing = [b"%s: %s\r\n" % header for header in self.headers if header[0] in FRAMING]
                self.parser = httptools.HttpRequestParser(self)
                self._head_was_read = True
                data = b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n" + data[upgrade.args[0] :]

    def _wait_for_request(self) -> None:
        deadline = Deadline(self.loop, self.timeout_keep_alive, self.timeout_keep_alive_handler)
        self.timeout_keep_alive_task = deadline  # type: ignore[assignment]

    # -- what the parser finds

    def on_message_begin(self) -> None:
        if self._head_was_read:
            return
        super().on_message_begin()
        self._head_begun = True
        self._head_size = self._num_headers = 0

    def on_url(self, url: bytes) -> None:
        if self._head_was_read:
            return
        self._grow(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_was_read:
            return
        self._num_headers += 1
        self._grow(len(name) + len(value))
        if self._num_headers > MAX_HEADERS:
            self._refusal = HeadTooLarge(f"the request has more than {MAX_HEADERS} headers")
            raise ValueError("too many headers")
        if self._in_head:  # trailers are read over: the request is being answered by what its head said
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = self._head_begun = False
        self._idle_bytes = 0
        self._stop_head_timer()
        if self._head_was_read:
            self._head_was_read = False
            return
        self._unanswered = self._open_cycles()
        if len(self._unanswered) > MAX_PIPELINED:
            raise ValueError("too many pipelined requests")
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise ValueError("a version of HTTP that is not spoken here")
        super().on_headers_complete()
        if self._unanswered:
            self.flow.resume_reading()  # the end of the connection is to be seen at once
        self._unanswered.append(self.cycle)
        if self._is_http10(self.cycle):
            self.cycle.waiting_for_100_continue = False  # its clients know no interim answers

    def on_body(self, body: bytes) -> None:
        """Runs for each chunk, of which there may be a million: as uvicorn's, without asking for web sockets."""
        self._idle_bytes = 0
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # its body is still to come
        self._in_head = True
        self._idle_bytes = 0
        super().on_message_complete()

    def _grow(self, num_bytes: int) -> None:
        self._head_size += num_bytes
        if self._head_size > self.bounds.max_head:
            self._refusal = self._too_large()
            raise ValueError("the head is too large")

    def _too_large(self) -> ApiError:
        return HeadTooLarge(f"the request's head is larger than the limit of {self.bounds.max_head} bytes")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._is_http10(cycle):
            app = unchunked(cycle, app)
        super()._start_asgi_task(cycle, app)

    @staticmethod
    def _is_http10(cycle: RequestResponseCycle) -> bool:
        return cycle.scope["http_version"] == "1.0"

    def _open_cycles(self) -> list[RequestResponseCycle]:
        """Of the requests that are not answered to their end."""
        return [cycle for cycle in self._unanswered if not cycle.response_complete]

    # -- a client that has said all it will

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client may close its side once it has asked, and read its answers (half-closed). One that has closed both
        looks the same until something is sent to it, which its system then refuses. True: the transport stays open."""
        waiting = self._open_cycles()
        if not waiting or self._refused or waiting[-1].more_body or self.scheme == "https":  # TLS has no half of it
            return None
        if self._look_timer is None:
            self._stop_head_timer()
            waiting[-1].keep_alive = False
            if not (waiting[0].response_started or self._is_http10(waiting[0])):
                waiting[0].waiting_for_100_continue = False
                self.transport.write(CONTINUE)  # any client passes over it
            self._look_timer = self.loop.call_later(FIRST_LOOK_S, self._look, FIRST_LOOK_S)
        return True

    def _look(self, waited: float) -> None:
        """A connection that was reset is told apart by its socket alone: the transport does not read any more."""
        if self.transport.is_closing():
            return
        wait = min(2 * waited, LAST_LOOK_S)
        self._look_timer = self.loop.call_later(wait, self._look, wait)
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), 0)
        if poll.poll(0):
            self.transport.abort()

    # -- time

    def _head_overdue(self) -> None:
        self._head_timer = None
        self._refuse(RequestTimeout("the head of the request did not come in time"))

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._watch_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self._wait_for_request()
        if self.transport.get_write_buffer_size():
            self._watch_writing()

    def _watch_writing(self) -> None:
        if self._write_timer is None:
            size = self.transport.get_write_buffer_size()
            self._write_timer = Deadline(self.loop, self.bounds.send_timeout, partial(self._check_writing, size))

    def _check_writing(self, before: int) -> None:
        self._write_timer = None
        left = self.transport.get_write_buffer_size()
        if left and left > before - BYTES_PER_S * self.bounds.send_timeout:
            logger.debug("a client stopped reading; %d bytes were left", left)
            self.transport.abort()
        elif left:
            self._watch_writing()

    # -- refusals

    def _refuse(self, error: ApiError) -> None:
        """Answers what no application has been asked about, and closes."""
        if self._refused:
            return
        self._refused = True
        self._stop_head_timer()
        waiting = self._open_cycles()
        if any(cycle.response_started for cycle in waiting) or len(waiting) > 1:
            self.transport.abort()
            return
        for cycle in waiting:
            cycle.disconnected = True
            cycle.message_event.set()
        body = self.error_body(error)
        head = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        head["x-request-id"] = uuid.uuid4().hex
        if error.retry_after is not None:
            head["retry-after"] = str(error.retry_after)
        lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in head.items())
        self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        self.transport.close()
        self._watch_writing()


def unchunked(cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
    """`app` for one request of HTTP/1.0, which has no chunks (RFC 9112, 6.1): an answer of unknown length is sent as it
    is, and the end of the connection ends it."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        is_open_ended = False

        async def send_plain(message: Message) -> None:
            nonlocal is_open_ended
            if message["type"] == "http.response.start":
                is_open_ended = all(name.lower() != b"content-length" for name, _ in message.get("headers", []))
                if is_open_ended:
                    cycle.chunked_encoding = False
                    cycle.expected_content_length = sys.maxsize
            elif is_open_ended and not message.get("more_body", False):
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return run
