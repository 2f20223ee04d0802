"""The client's end of the socket to an engine, on the client's event loop. The engine's end is wire/sockets.py.

Invariants: sending never blocks; reading takes the loop for a few milliseconds at a time, however much has come; an
engine is lost when its connection ends, and at no other time.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from octavo.processes.frames import BrokenStream, frame, take
from octavo.wire.endpoint import LINGER_S, RECEIVE_BYTES, check_endpoint
from octavo.wire.messages import MAX_MESSAGE_BYTES, PROTOCOL_VERSION, Outputs, ToClient, ToEngine

logger = logging.getLogger(__name__)

CLIENT_QUEUE_BYTES = 256 << 20
RECONNECT_S = 0.05
SLICE_S = 0.005
"""How long the messages that have come may keep the loop before it looks after others."""


class SocketConnection:
    """The client's end, on the running event loop; reconnects by itself.

    Calls `on_outputs(outputs)`, `on_message(message)` of other kinds, `on_connected()` and `on_lost()` from the loop,
    in this order of events: all that an engine said comes before its loss.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        on_message: Callable[[ToClient], None],
        on_outputs: Callable[[Outputs], None],
        on_connected: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._path = check_endpoint(endpoint)
        self._on_message = on_message
        self._on_outputs = on_outputs
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToClient)
        self._socket: socket.socket | None = None
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._pausing = False
        """More has come than a slice of time was enough for."""
        self._retry: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def open(self) -> None:
        """Start connecting; must be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._retry = self._loop.call_later(0, self._connect)

    def send(self, message: ToEngine) -> bool:
        """Send, or queue, a message without blocking; False when there is no engine, or it takes nothing any more."""
        if self._socket is None or self._loop is None or len(self._outbox) > CLIENT_QUEUE_BYTES:
            return False
        payload = self._encoder.encode(message)
        waiting = bool(self._outbox)
        self._outbox += frame(payload)
        if not waiting and not self._flush():
            self._loop.add_writer(self._socket.fileno(), self._on_writable)
        return True

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._socket is not None:
            if self._outbox:
                self._socket.settimeout(LINGER_S)
                with suppress(OSError):
                    self._socket.sendall(self._outbox)
            self._disconnect()
        self._loop = None

    def _connect(self) -> None:
        assert self._loop is not None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(self._path)
        except OSError:  # no engine is there, or it has too many knocking
            connection.close()
            self._retry = self._loop.call_later(RECONNECT_S, self._connect)
            return
        self._retry = None
        self._socket = connection
        self._loop.add_reader(connection.fileno(), self._on_readable)
        self._on_connected()

    def _disconnect(self) -> None:
        assert self._loop is not None and self._socket is not None
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._socket = None
        self._inbox.clear()
        self._outbox.clear()
        self._pausing = False

    def _flush(self) -> bool:
        """Whether all is sent; a connection that is broken is noticed by reading."""
        assert self._socket is not None
        try:
            del self._outbox[: self._socket.send(self._outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self._outbox.clear()
        return not self._outbox

    def _on_writable(self) -> None:
        if self._socket is not None and self._flush() and self._loop is not None:
            self._loop.remove_writer(self._socket.fileno())

    def _on_readable(self) -> None:
        if self._socket is None or self._loop is None:
            return
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        self._inbox += data
        self._hand_out()

    def _lose(self) -> None:
        if self._socket is not None and self._loop is not None:
            self._disconnect()
            self._retry = self._loop.call_later(RECONNECT_S, self._connect)
            self._on_lost()

    def _hand_out(self) -> None:
        try:
            self._hand_out_some()
        except BrokenStream as error:
            logger.error("%s; leaving it", error)
            self._lose()

    def _hand_out_some(self) -> None:
        """The messages that have come whole; when there are many, the rest after others had the loop. Raises
        BrokenStream where no message can follow."""
        until = time.monotonic() + SLICE_S
        found = take(self._inbox, MAX_MESSAGE_BYTES)
        for payload in found:
            try:
                message = self._decoder.decode(payload)
            except (ValueError, RecursionError, msgspec.MsgspecError) as error:
                logger.warning("dropped what is no message of protocol %d: %s", PROTOCOL_VERSION, error)
                continue
            if type(message) is Outputs:
                self._on_outputs(message)
            else:
                self._on_message(message)
            if self._socket is None or self._loop is None:  # closed by what it heard
                return
            if time.monotonic() > until:
                found.close()
                if not self._pausing:
                    self._pausing = True
                    self._loop.remove_reader(self._socket.fileno())
                self._loop.call_soon(self._go_on)
                return
        if self._pausing and self._socket is not None and self._loop is not None:
            self._pausing = False
            self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def _go_on(self) -> None:
        if self._pausing:
            self._hand_out()
