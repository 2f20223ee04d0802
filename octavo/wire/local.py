"""A transport between two threads of one process (or two halves of one): queues of plain message objects, no encoding.

Owned by whoever builds an engine loop in process (client/offline.py, tests). The engine's side is `LocalTransport`
(wire/transport.py's protocol), the clients' side are the connections that `connect()` returns.
Invariant: messages of one sender arrive in the order in which they were sent; nothing blocks but `receive`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Set

from octavo.wire.messages import ToClient, ToEngine


class LocalConnection:
    """A client's end. Thread-safe; made by `LocalTransport.connect`."""

    def __init__(self, transport: LocalTransport, client: bytes) -> None:
        self.client = client
        self._transport = transport
        self._messages: deque[ToClient] = deque()
        self._arrived = threading.Condition()

    def send(self, message: ToEngine) -> bool:
        """Never blocks; → False after `close` of either end, when the message is dropped."""
        return self._transport._deliver(self.client, message)

    def receive(self, timeout: float | None = 0) -> list[ToClient]:
        """All messages that have arrived. Waits at most `timeout` seconds for the first (0: does not wait; None: as
        long as it takes, or until the connection is closed)."""
        with self._arrived:
            if not self._messages and timeout != 0 and self._transport._knows(self.client):
                self._arrived.wait(timeout)
            found = list(self._messages)
            self._messages.clear()
            return found

    def close(self) -> None:
        """From now on nothing passes either way. Send `Bye` first, to end this client's requests at once."""
        self._transport._forget(self.client)
        with self._arrived:
            self._arrived.notify_all()

    def _deliver(self, message: ToClient) -> None:
        with self._arrived:
            self._messages.append(message)
            self._arrived.notify_all()


class LocalTransport:
    """The engine's end; implements wire.transport.Transport."""

    behind: Set[bytes] = frozenset()
    """Nobody: what a reader has not taken yet is in its own process."""

    def __init__(self) -> None:
        self._messages: deque[tuple[bytes, ToEngine]] = deque()
        self._arrived = threading.Condition()
        self._clients: dict[bytes, LocalConnection] = {}
        self._next_client = 0
        self._woken = False
        self._closed = False

    def connect(self) -> LocalConnection:
        """A new client with a key of its own."""
        with self._arrived:
            self._next_client += 1
            connection = LocalConnection(self, b"local-%d" % self._next_client)
            if not self._closed:
                self._clients[connection.client] = connection
            return connection

    def receive(self, timeout: float | None) -> list[tuple[bytes, ToEngine]]:
        with self._arrived:
            if not self._messages and timeout != 0 and not self._closed and not self._woken:
                self._arrived.wait(timeout)
            self._woken = False
            found = list(self._messages)
            self._messages.clear()
            return found

    def wake(self) -> None:
        with self._arrived:
            self._woken = True
            self._arrived.notify_all()

    def send(self, client: bytes, message: ToClient) -> None:
        connection = self._clients.get(client)
        if connection is not None:
            connection._deliver(message)

    def close(self) -> None:
        """Wakes everyone who waits; later messages are dropped."""
        with self._arrived:
            self._closed = True
            connections = list(self._clients.values())
            self._clients.clear()
            self._arrived.notify_all()
        for connection in connections:
            with connection._arrived:
                connection._arrived.notify_all()

    def _deliver(self, client: bytes, message: ToEngine) -> bool:
        with self._arrived:
            if client not in self._clients:
                return False
            self._messages.append((client, message))
            self._arrived.notify_all()
            return True

    def _knows(self, client: bytes) -> bool:
        return client in self._clients

    def _forget(self, client: bytes) -> None:
        with self._arrived:
            self._clients.pop(client, None)
