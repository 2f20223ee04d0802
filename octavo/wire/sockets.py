"""The engine's end of the sockets to its clients: Unix stream sockets, one MessagePack message a frame.

Owned by the engine's process; the client's end is wire/connection.py. Plain sockets rather than a message library: a
send is one system call in the thread that has the tokens, and no library's thread wakes up beside the kernels that use
all cores. Invariants: sending never blocks; what a peer sends is decoded into the typed messages or dropped with a line
in the log; nothing is ever unpickled. A client lives as long as its connection; the end of it is reported as if the
client had said `Bye`. For one that does not read, output is merged (wire/backlog.py) up to `hold_bytes`; then it is
`behind` until half of that is sent.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Set
from contextlib import suppress
from pathlib import Path

import msgspec

from octavo.errors import ConfigError
from octavo.processes.frames import HEADER, BrokenStream, take
from octavo.wire.backlog import Backlog
from octavo.wire.endpoint import LINGER_S, RECEIVE_BYTES, check_endpoint, listen, restore_parent
from octavo.wire.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    VERSION_MISMATCH,
    Bye,
    Failed,
    Hello,
    ToClient,
    ToEngine,
)

logger = logging.getLogger(__name__)

HOLD_BYTES = 32 << 20
"""Of memory, that wait for a client before it is behind: some 800,000 tokens."""
FLUSH_BYTES = 1 << 20
"""At most so many are sent to a client that reads again before the engine does something else."""
LOOK_S = 1.0
"""How often an engine looks whether its path is still there."""


class _Peer:
    """A connected client, as the engine's end knows it."""

    __slots__ = ("backlog", "behind", "inbox", "key", "socket", "unsent")

    def __init__(self, connection: socket.socket, key: bytes) -> None:
        self.socket = connection
        self.key = key
        self.inbox = bytearray()
        self.unsent = b""
        """What the kernel has not taken of the last frame; all that follows is in `backlog`."""
        self.backlog = Backlog()
        self.behind = False


class SocketTransport:
    """The engine's end; implements wire.transport.Transport. Not thread-safe, but for `wake`."""

    def __init__(self, endpoint: str, *, hold_bytes: int = HOLD_BYTES) -> None:
        """Binds at once; raises ConfigError when that is not possible. `hold_bytes`: what may wait for a client, beyond
        what the kernel holds, before it is behind."""
        self._path = check_endpoint(endpoint)
        self._listener = listen(self._path)
        self._inode = Path(self._path).stat().st_ino
        self._hold_bytes = hold_bytes
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._by_fd: dict[int, _Peer] = {}
        self._by_key: dict[bytes, _Peer] = {}
        self._gone: list[bytes] = []
        self._behind: set[bytes] = set()
        self._num_peers = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._frame = bytearray(HEADER.size)
        self._next_complaint = 0.0
        self._next_look = 0.0

    @property
    def behind(self) -> Set[bytes]:
        return self._behind

    def wake(self) -> None:
        """End the wait of `receive`, now or the next one; safe from signal handlers and other threads."""
        with suppress(OSError):
            os.write(self._wake_write, b"w")

    def receive(self, timeout: float | None) -> list[tuple[bytes, ToEngine]]:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._keep_path()
        if not self._by_fd:  # those that are here wake it with their heartbeats
            timeout = LOOK_S if timeout is None else min(timeout, LOOK_S)
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
        if peer.unsent:
            peer.backlog.add(message)
            if not peer.behind and peer.backlog.size > self._hold_bytes:
                peer.behind = True
                logger.warning("a client does not read, and %d MiB wait for it: pausing", peer.backlog.size >> 20)
                self._behind.add(client)
                self._watch(peer)
            return
        frame = self._encoded(message)
        try:
            sent = peer.socket.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(peer)
            return
        if sent < len(frame):
            peer.unsent = bytes(frame[sent:])
            self._watch(peer)

    def close(self) -> None:
        """What was sent and the kernel has not taken yet is lost, except to clients that read within a moment."""
        deadline = time.monotonic() + LINGER_S
        for peer in list(self._by_fd.values()):
            with suppress(OSError):
                while peer.unsent:
                    peer.socket.settimeout(max(deadline - time.monotonic(), 0.001))
                    peer.socket.sendall(peer.unsent)
                    peer.unsent = self._next_frame(peer)
            peer.socket.close()
        self._epoll.close()
        self._listener.close()
        with suppress(OSError):
            if Path(self._path).stat().st_ino == self._inode:  # not the next engine's
                Path(self._path).unlink()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _keep_path(self) -> None:
        """Listen anew where somebody has cleaned the path away: nobody else would ever find this engine."""
        try:
            if Path(self._path).exists():
                return
            restore_parent(self._path)
            listener = listen(self._path)
        except (ConfigError, OSError) as error:
            self._complain(f"the engine's socket is gone and cannot be made again: {error}")
            return
        logger.warning("the engine's socket had been removed from %s; it listens there again", self._path)
        self._epoll.unregister(self._listener.fileno())
        self._listener.close()
        self._listener, self._inode = listener, Path(self._path).stat().st_ino
        self._epoll.register(listener.fileno(), select.EPOLLIN)

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
            self._drop(peer)
            return
        peer.inbox += data
        try:
            for payload in take(peer.inbox, MAX_MESSAGE_BYTES):
                message = self._decode(peer.key, payload)
                if message is not None:
                    found.append((peer.key, message))
        except BrokenStream as error:
            self._complain(str(error))
            self._drop(peer, "dropped")

    def _flush(self, peer: _Peer) -> None:
        left = FLUSH_BYTES
        try:
            while peer.unsent and left > 0:
                sent = peer.socket.send(peer.unsent)
                left -= sent
                peer.unsent = peer.unsent[sent:] or self._next_frame(peer)
        except BlockingIOError:
            pass
        except OSError:  # reading tells
            peer.unsent, peer.backlog = b"", Backlog()
        if peer.behind and peer.backlog.size <= self._hold_bytes // 2:
            logger.info("a client that did not read reads again")
            peer.behind = False
            self._behind.discard(peer.key)
        self._watch(peer)

    def _next_frame(self, peer: _Peer) -> bytes:
        message = peer.backlog.take()
        return b"" if message is None else bytes(self._encoded(message))

    def _encoded(self, message: ToClient) -> bytearray:
        """The frame, in a buffer that is used again."""
        frame = self._frame
        self._encoder.encode_into(message, frame, HEADER.size)
        HEADER.pack_into(frame, 0, len(frame) - HEADER.size)
        return frame

    def _watch(self, peer: _Peer) -> None:
        """Have `receive` wake for what this client may do now. Its end is seen in any case."""
        events = select.EPOLLRDHUP if peer.behind else select.EPOLLIN
        self._epoll.modify(peer.socket.fileno(), events | (select.EPOLLOUT if peer.unsent else 0))

    def _drop(self, peer: _Peer, why: str = "gone") -> None:
        if self._by_key.pop(peer.key, None) is None:
            return
        logger.info("a client is %s", why)
        del self._by_fd[peer.socket.fileno()]
        self._epoll.unregister(peer.socket.fileno())
        peer.socket.close()
        self._gone.append(peer.key)
        self._behind.discard(peer.key)

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
