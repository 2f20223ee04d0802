"""The sockets between client and engine: ROUTER to DEALER over a Unix socket, one MessagePack message a frame.

RouterTransport is owned by the engine's process, DealerConnection by the client's event loop; private_endpoint makes
the folder that both meet in. Invariants: sending never blocks; what a peer sends is decoded into the typed messages or
dropped with a line in the log; nothing is ever unpickled. A client that is gone, or that reads so slowly that its
queue is full, is reported to the engine as if it had said `Bye`: it notices (Pong.known), and its ledger brings
everything back.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import zmq
from zmq.utils.monitor import parse_monitor_message

from octavo.errors import ConfigError
from octavo.wire.messages import PROTOCOL_VERSION, Bye, Failed, Hello, ToClient, ToEngine

logger = logging.getLogger(__name__)

SCHEME = "ipc://"
MAX_PATH_BYTES = 107
"""A Unix socket's address holds 108 bytes, the last of them NUL."""
MAX_MESSAGE_BYTES = 64 << 20
ENGINE_QUEUE = 4096
"""Messages (steps, mostly) that wait for a client before it counts as gone."""
CLIENT_QUEUE = 65536
RECONNECT_MS = 50
RECEIVE_BATCH = 256
VERSION_MISMATCH = "version_mismatch"
_PREFIX = "octavo-"


def check_endpoint(endpoint: str) -> str:
    """The path of an ipc:// endpoint. Raises ConfigError for other schemes and paths that no Unix socket can have."""
    path = endpoint.removeprefix(SCHEME)
    if not endpoint.startswith(SCHEME) or not path or "\0" in path or path.startswith("@"):
        raise ConfigError(f"endpoint {endpoint!r}: give ipc://PATH of a Unix socket")
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(f"endpoint {endpoint!r}: the path is longer than {MAX_PATH_BYTES} bytes; use a shorter one")
    return path


@contextmanager
def private_endpoint(folder: Path | None = None) -> Iterator[str]:
    """An endpoint inside a new folder that only this user may enter (0700), removed at the end. `folder`: where,
    instead of the folder for temporary files. Folders that killed processes left behind are removed on the way."""
    where = next(
        path
        for path in [folder or Path(tempfile.gettempdir()), Path("/tmp")]
        if len(os.fsencode(path / _PREFIX)) + 32 <= MAX_PATH_BYTES or path == Path("/tmp")
    )
    _remove_stale(where)
    inside = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
    lock = (inside / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield f"{SCHEME}{inside}/engine"
    finally:
        lock.close()
        shutil.rmtree(inside, ignore_errors=True)


def _remove_stale(where: Path) -> None:
    """A folder is stale when it is ours, old enough to be complete, and nobody holds its lock."""
    for folder in where.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < 60:
                continue
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _refuse_taken(path: str) -> None:
    """Binding would silently take the socket from an engine that already listens there."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(1.0)
    try:
        probe.connect(path)
    except OSError:
        return
    finally:
        probe.close()
    raise ConfigError(f"endpoint {SCHEME}{path}: another engine listens there; stop it or choose another path")


class RouterTransport:
    """The engine's end; implements wire.transport.Transport. One thread uses it, but for `wake`."""

    def __init__(self, endpoint: str, *, queue: int = ENGINE_QUEUE) -> None:
        """Binds at once; raises ConfigError when that is not possible."""
        path = check_endpoint(endpoint)
        _refuse_taken(path)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.SNDHWM, queue)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        umask = os.umask(0o177)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigError(f"endpoint {endpoint}: cannot listen there: {error}") from None
        finally:
            os.umask(umask)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._gone: dict[bytes, None] = {}
        self._next_complaint = 0.0

    def wake(self) -> None:
        """End the wait of `receive`, now or the next one; safe from signal handlers and other threads."""
        with suppress(OSError):
            os.write(self._wake_write, b"w")

    def receive(self, timeout: float | None) -> list[tuple[bytes, ToEngine]]:
        found: list[tuple[bytes, ToEngine]] = [(client, Bye()) for client in self._gone]
        self._gone.clear()
        if timeout != 0 and not found:
            self._poller.poll(None if timeout is None else math.ceil(timeout * 1e3))
            with suppress(OSError):
                os.read(self._wake_read, 4096)
        for _ in range(RECEIVE_BATCH):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            message = self._decode(frames)
            if message is not None:
                found.append((frames[0], message))
        return found

    def send(self, client: bytes, message: ToClient) -> None:
        if client in self._gone:
            return
        try:
            self._socket.send_multipart([client, self._encoder.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            logger.info("a client is %s", "gone" if error.errno == zmq.EHOSTUNREACH else "not reading, dropped")
            self._gone[client] = None

    def close(self) -> None:
        self._context.destroy(linger=200)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _decode(self, frames: list[bytes]) -> ToEngine | None:
        try:
            if len(frames) != 2:
                raise ValueError(f"{len(frames)} frames instead of 2")
            message: ToEngine = self._decoder.decode(frames[1])
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            if time.monotonic() >= self._next_complaint:  # a peer must not fill the log
                self._next_complaint = time.monotonic() + 1.0
                logger.warning("dropped what is no message of protocol %d: %s", PROTOCOL_VERSION, error)
            return None
        if isinstance(message, Hello) and message.version != PROTOCOL_VERSION:
            text = f"the engine speaks protocol {PROTOCOL_VERSION}, the client {message.version}; use the same Octavo"
            logger.warning("refused a client: %s", text)
            self.send(frames[0], Failed(-1, VERSION_MISMATCH, text))
            return None
        return message


class DealerConnection:
    """The client's end, on the running event loop; reconnects by itself.

    Calls `on_message(message)`, `on_connected()` and `on_lost()` from the loop, in this order of events: all that an
    engine said comes before its loss. What was queued for a lost engine may reach the next one, ahead of the Hello of
    `on_connected`: engines ignore what comes from strangers.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        on_message: Callable[[ToClient], None],
        on_connected: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        check_endpoint(endpoint)
        self._on_message = on_message
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToClient)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in [
            (zmq.LINGER, 0),
            (zmq.SNDHWM, CLIENT_QUEUE),
            (zmq.RCVHWM, ENGINE_QUEUE),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
        ]:
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self._endpoint = endpoint
        self._connected = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connected(self) -> bool:
        return self._connected

    def open(self) -> None:
        """Start connecting; must be called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.FD, self._on_readable)
        self._loop.add_reader(self._monitor.FD, self._on_event)
        self._socket.connect(self._endpoint)
        self._on_event()

    def send(self, message: ToEngine) -> bool:
        """Queue a message without blocking; False when the queue is full."""
        if self._closed or self._loop is None:
            return False
        try:
            self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            # Sending may swallow the signal of the socket's edge-triggered descriptor.
            self._loop.call_soon(self._on_readable)
        return True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._socket.FD)
            self._loop.remove_reader(self._monitor.FD)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=100)
        self._context.term()

    def _on_readable(self) -> None:
        if not self._closed and self._receive():
            assert self._loop is not None
            self._loop.call_soon(self._on_readable)

    def _receive(self) -> bool:
        """Hands on a batch of messages; True when there may be more."""
        for _ in range(RECEIVE_BATCH):
            if self._closed:
                return False
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._dispatch(frames)
        return True

    def _dispatch(self, frames: list[bytes]) -> None:
        try:
            message = self._decoder.decode(frames[-1])
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            logger.warning("dropped what is no message of protocol %d: %s", PROTOCOL_VERSION, error)
            return
        self._on_message(message)

    def _on_event(self) -> None:
        while not self._closed:
            try:
                event: dict[str, Any] = dict(parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK)))
            except zmq.Again:
                return
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED and not self._connected:
                self._connected = True
                self._on_connected()
            elif event["event"] == zmq.EVENT_DISCONNECTED and self._connected:
                self._connected = False
                while self._receive():  # what the engine said last comes before the news of its end
                    pass
                self._on_lost()
