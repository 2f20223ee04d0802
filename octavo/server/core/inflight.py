"""The requests that are being worked on: who left, who reads too slowly, and how they end at shutdown.

Each generating handler runs inside `async with inflight.watch(receive)`. Invariant: a watched task
is cancelled only while it is inside its block, and leaves the block with the ApiError that says why.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive

from octavo.errors import ApiError, ClientGone, Unavailable

SEND_TIMEOUT_S = 30.0
"""How long a reader may leave the full send buffer untouched."""
RETRY_AFTER_S = 5


class Watch:
    """One request in flight."""

    def __init__(self, inflight: InFlight, receive: Receive) -> None:
        self._inflight = inflight
        self._receive = receive
        self._reason: ApiError | None = None
        self._since: float | None = None

    def sending(self) -> None:
        self._since = self._loop.time()

    def sent(self) -> None:
        self._since = None

    def stalled(self, now: float, limit: float) -> bool:
        return self._since is not None and now - self._since > limit

    def stop(self, reason: ApiError) -> None:
        """Ends the block with `reason`; the first reason stays."""
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    async def __aenter__(self) -> Watch:
        self._inflight.enter(self)
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._listener = self._loop.create_task(self._listen())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _e: object, _t: object) -> None:
        self._listener.cancel()
        self._inflight.leave(self)
        if self._reason is not None and kind is asyncio.CancelledError:
            if uncancel := getattr(self._task, "uncancel", None):  # Python 3.11 counts cancellations
                uncancel()
            raise self._reason from None

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.stop(ClientGone("the client closed the connection"))


class InFlight:
    """All watches of one app, and whether new ones are let in."""

    def __init__(self, send_timeout: float = SEND_TIMEOUT_S) -> None:
        self.send_timeout = send_timeout
        self.draining = False
        self._watches: set[Watch] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._watches)

    def refuse_when_draining(self) -> None:
        if self.draining:
            message = "the server is shutting down; try again shortly"
            raise Unavailable(message, code="draining", retry_after=RETRY_AFTER_S)

    def watch(self, receive: Receive) -> Watch:
        return Watch(self, receive)

    async def drain(self, timeout: float) -> int:
        """Lets nobody in, waits up to `timeout` seconds for the others, ends the rest with Unavailable.

        Returns how many were cut off.
        """
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
            return 0
        except asyncio.TimeoutError:
            rest = list(self._watches)
            for watch in rest:
                message = "the server was stopped before the answer was complete"
                watch.stop(Unavailable(message, code="draining", retry_after=RETRY_AFTER_S))
            return len(rest)

    def enter(self, watch: Watch) -> None:
        self._watches.add(watch)
        self._idle.clear()
        if self._sweep is None:
            self._schedule()

    def leave(self, watch: Watch) -> None:
        self._watches.discard(watch)
        if not self._watches:
            self._idle.set()

    def _schedule(self) -> None:
        self._sweep = asyncio.get_running_loop().call_later(self.send_timeout / 4, self._drop_stalled)

    def _drop_stalled(self) -> None:
        """The timer runs only while something is in flight, so an idle server sleeps."""
        now = asyncio.get_running_loop().time()
        for watch in list(self._watches):
            if watch.stalled(now, self.send_timeout):
                watch.stop(ClientGone("the client stopped reading"))
        self._sweep = None
        if self._watches:
            self._schedule()
