"""The engine side of a connection, whatever carries it: a Unix socket (wire/sockets.py), queues in one process."""

from __future__ import annotations

from collections.abc import Set
from typing import Protocol

from octavo.wire.messages import ToClient, ToEngine


class Transport(Protocol):
    def receive(self, timeout: float | None) -> list[tuple[bytes, ToEngine]]:
        """All messages that have arrived, as (client key, message). Waits at most `timeout` seconds for the first
        (0: does not wait; None: as long as it takes)."""
        ...

    def send(self, client: bytes, message: ToClient) -> None:
        """Never blocks; a message to a client that is gone is dropped."""
        ...

    @property
    def behind(self) -> Set[bytes]:
        """Clients that do not read, and for whom so much waits that nothing more should be made for them now. What they
        say is not received either, but for the end of their connection."""
        ...

    def wake(self) -> None:
        """Ends the wait of `receive`, now or the next one; may be called from any thread."""
        ...

    def close(self) -> None: ...
