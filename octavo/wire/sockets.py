"""The sockets between client and engine: a Unix stream socket, one MessagePack message a frame.

SocketTransport is owned by the engine's process, SocketConnection by the client's event loop. A frame is the message's
length in four bytes, little-endian, and the message. Plain sockets rather than a message library: a send is one system
call in the thread that has the tokens, and no library's thread wakes up beside the kernels that use all cores.
Invariants: sending never blocks; what a peer sends is decoded into the typed messages or dropped with a line in the
log; nothing is ever unpickled. A client that is gone, or that reads so slowly that its queue is full, is reported to
the engine as if it had said `Bye`: it sees the end of its connection, and its ledger brings everything back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from octavo.processes.frames import HEADER, frame, take
from octavo.wire.endpoint import check_endpoint, listen
from octavo.wire.messages import PROTOCOL_VERSION, Bye, Failed, Hello, ToClient, ToEngine

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 << 20
ENGINE_QUEUE = 4096
"""Messages (steps, mostly) that wait for a client before it counts as gone."""
CLIENT_QUEUE_BYTES = 256 << 20
RECONNECT_S = 0.05
LINGER_S = 0.2
"""How long closing waits for a peer to take what was sent."""
RECEIVE_BYTES = 256 << 10
VERSION_MISMATCH = "version_mismatch"


class _Peer:
    """A connected client, as the engine's end knows it."""

    __slots__ = ("inbox", "key", "outbox", "socket")

    def __init__(self, connection: socket.socket, key: bytes) -> None:
        self.socket = connection
        self.key = key
        self.inbox = bytearray()
        self.outbox: deque[bytes] = deque()
        """What the kernel has not taken yet, the first of it perhaps in part."""


class SocketTransport:
    """The engine's end; implements wire.transport.Transport. Not thread-safe, but for `wake`."""

    def __init__(self, endpoint: str, *, queue: int = ENGINE_QUEUE) -> None:
        """Binds at once; raises ConfigError when that is not possible. `queue`: messages, beyond what the kernel
        holds, that may wait for a client."""
        self._path = check_endpoint(endpoint)
        self._listener = listen(self._path)
        self._inode = Path(self._path).stat().st_ino
        self._queue = queue
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._by_fd: dict[int, _Peer] = {}
        self._by_key: dict[bytes, _Peer] = {}
        self._gone: list[bytes] = []
        self._num_peers = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._frame = bytearray(HEADER.size)
        self._next_complaint = 0.0

    def wake(self) -> None:
        """End the wait of `receive`, now or the next one; safe from signal handlers and other threads."""
        with suppress(OSError):
            os.write(self._wake_write, b"w")

    def receive(self, timeout: float | None) -> list[tuple[bytes, ToEngine]]:
        ready = self._epoll.poll(0 if self._gone else timeout)
        if not ready and not self._gone:
            return []
        found: list[tuple[bytes, ToEngine]] = []
        for fd, events in ready:
            peer = self._by_fd.get(fd)
            if peer is not None:
                if events & select.EPOLLOUT:
                    self._flush(peer)
                if events & ~select.EPOLLOUT:
                    self._read(peer, found)
            elif fd == self._wake_read:
                with suppress(OSError):
                    os.read(self._wake_read, 4096)
            elif fd == self._listener.fileno():
                self._accept(found)
        found += [(client, Bye()) for client in self._gone]
        self._gone.clear()
        return found

    def send(self, client: bytes, message: ToClient) -> None:
        peer = self._by_key.get(client)
        if peer is None:
            return
        frame = self._frame
        self._encoder.encode_into(message, frame, HEADER.size)
        HEADER.pack_into(frame, 0, len(frame) - HEADER.size)
        if peer.outbox:
            peer.outbox.append(bytes(frame))
            if len(peer.outbox) > self._queue:
                self._drop(peer, "not reading, dropped")
            return
        try:
            sent = peer.socket.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(peer, "gone")
            return
        if sent < len(frame):
            peer.outbox.append(bytes(frame[sent:]))
            self._epoll.modify(peer.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def close(self) -> None:
        """What was sent and the kernel has not taken yet is lost, except to clients that read within a moment."""
        deadline = time.monotonic() + LINGER_S
        for peer in list(self._by_fd.values()):
            if peer.outbox:
                peer.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                with suppress(OSError):
                    peer.socket.sendall(b"".join(peer.outbox))
            peer.socket.close()
        self._epoll.close()
        self._listener.close()
        with suppress(OSError):
            if Path(self._path).stat().st_ino == self._inode:  # not the next engine's
                Path(self._path).unlink()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _accept(self, found: list[tuple[bytes, ToEngine]]) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it left again, or there are too many open files: the next turn tries once more
            return
        connection.setblocking(False)
        self._num_peers += 1
        peer = _Peer(connection, b"%d" % self._num_peers)
        self._by_fd[connection.fileno()] = peer
        self._by_key[peer.key] = peer
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        self._read(peer, found)  # most have said Hello already

    def _read(self, peer: _Peer, found: list[tuple[bytes, ToEngine]]) -> None:
        """One piece of what has come: the rest waits for the next turn, so that no peer keeps the engine busy."""
        try:
            data = peer.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(peer, "gone")
            return
        peer.inbox += data
        try:
            for payload in take(peer.inbox, MAX_MESSAGE_BYTES):
                message = self._decode(peer.key, payload)
                if message is not None:
                    found.append((peer.key, message))
        except ValueError as error:
            self._complain(str(error))
            self._drop(peer, "dropped")

    def _flush(self, peer: _Peer) -> None:
        try:
            while peer.outbox:
                first = peer.outbox[0]
                sent = peer.socket.send(first)
                if sent < len(first):
                    peer.outbox[0] = first[sent:]
                    return
                peer.outbox.popleft()
        except BlockingIOError:
            return
        except OSError:  # reading tells
            peer.outbox.clear()
        self._epoll.modify(peer.socket.fileno(), select.EPOLLIN)

    def _drop(self, peer: _Peer, why: str) -> None:
        if self._by_key.pop(peer.key, None) is None:
            return
        logger.info("a client is %s", why)
        del self._by_fd[peer.socket.fileno()]
        self._epoll.unregister(peer.socket.fileno())
        peer.socket.close()
        self._gone.append(peer.key)

    def _decode(self, key: bytes, payload: bytes) -> ToEngine | None:
        try:
            message: ToEngine = self._decoder.decode(payload)
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            self._complain(f"dropped what is no message of protocol {PROTOCOL_VERSION}: {error}")
            return None
        if isinstance(message, Hello) and message.version != PROTOCOL_VERSION:
            text = f"the engine speaks protocol {PROTOCOL_VERSION}, the client {message.version}; use the same Octavo"
            logger.warning("refused a client: %s", text)
            self.send(key, Failed(-1, VERSION_MISMATCH, text))
            return None
        return message

    def _complain(self, text: str) -> None:
        """At most once a second: a peer must not fill the log."""
        if time.monotonic() >= self._next_complaint:
            self._next_complaint = time.monotonic() + 1.0
            logger.warning("%s", text)


class SocketConnection:
    """The client's end, on the running event loop; reconnects by itself.

    Calls `on_message(message)`, `on_connected()` and `on_lost()` from the loop, in this order of events: all that an
    engine said comes before its loss.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        on_message: Callable[[ToClient], None],
        on_connected: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._path = check_endpoint(endpoint)
        self._on_message = on_message
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToClient)
        self._socket: socket.socket | None = None
        self._inbox = bytearray()
        self._outbox = bytearray()
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
            self._disconnect()
            self._retry = self._loop.call_later(RECONNECT_S, self._connect)
            self._on_lost()
            return
        self._inbox += data
        for payload in take(self._inbox, MAX_MESSAGE_BYTES):
            try:
                message = self._decoder.decode(payload)
            except (ValueError, RecursionError, msgspec.MsgspecError) as error:
                logger.warning("dropped what is no message of protocol %d: %s", PROTOCOL_VERSION, error)
            else:
                self._on_message(message)
            if self._socket is None:  # closed by what it heard
                return
