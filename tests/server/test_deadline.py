"""Deadlines of clients, on a loop whose clock is the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from octavo.server.http.deadline import GRACE_S, Deadline


class _Handle:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when, self.call, self.cancelled = when, call, False

    def cancel(self) -> None:
        self.cancelled = True


class _Loop(asyncio.AbstractEventLoop):
    def __init__(self) -> None:
        self.now = 50.0
        self.handles: list[_Handle] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None], *_args: object, **_: object) -> _Handle:  # type: ignore[override]
        self.handles.append(_Handle(self.now + delay, callback))
        return self.handles[-1]

    def wake(self, now: float) -> None:
        self.now = now
        due = [h for h in self.handles if h.when <= now and not h.cancelled]
        self.handles = [h for h in self.handles if h not in due]
        for handle in due:
            handle.call()


def test_who_is_late_is_late() -> None:
    loop, called = _Loop(), []
    Deadline(loop, 15.0, lambda: called.append(1))
    loop.wake(64.9)
    assert not called
    loop.wake(65.3)
    assert called


def test_after_a_stop_what_has_come_is_read_first() -> None:
    loop, called = _Loop(), []
    deadline = Deadline(loop, 15.0, lambda: called.append(1))
    loop.wake(90.0)
    assert not called
    loop.wake(90.0 + GRACE_S)
    assert called == [1]
    deadline = Deadline(loop, 15.0, lambda: called.append(2))
    loop.wake(200.0)
    deadline.cancel()  # by what was read
    loop.wake(300.0)
    assert called == [1]
