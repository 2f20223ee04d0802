"""What the watchdog takes for a hang."""

from __future__ import annotations

import faulthandler
import threading

import pytest

from octavo.engine import watchdog
from octavo.engine.watchdog import Watchdog


class _Ended(BaseException):
    pass


class _Watched:
    """A watchdog whose looks at the loop are turns of a script: (seconds since the last look, when the turn began)."""

    def __init__(self, script: list[tuple[float, float | None]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.script = iter(script)
        self.ended_at: float | None = None
        self.armed: list[float] = []
        self.since: float | None = None
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(watchdog.os, "_exit", self._exit)
        monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: self.armed.append(seconds))
        self.watchdog = Watchdog(4.0, lambda: self.since)
        self.watchdog._closed = self  # type: ignore[assignment]
        try:
            self.watchdog._watch()
        except _Ended:
            self.ended_at = self.now

    def _exit(self, _code: int) -> None:
        raise _Ended

    def wait(self, _seconds: float) -> bool:
        """In place of the sleep between two looks."""
        step = next(self.script, None)
        if step is None:
            return True
        self.now += step[0]
        self.since = step[1]
        return False


def test_a_step_over_its_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = _Watched([(1.0, 100.5)] * 10, monkeypatch)
    assert watched.ended_at == pytest.approx(105.0, abs=1.0)


def test_short_steps_and_sleep_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    script: list[tuple[float, float | None]] = [(1.0, 100.0 + i) for i in range(50)]
    assert _Watched([*script, *[(1.0, None)] * 50], monkeypatch).ended_at is None


def test_a_process_that_was_stopped_has_not_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = _Watched([(1.0, 100.5), (200.0, 100.5), (1.0, 302.0), (90.0, None), (1.0, 391.5)], monkeypatch)
    assert watched.ended_at is None
    assert min(watched.armed) > 200.0  # the timer without a lock cannot tell


def test_a_hang_is_ended_after_a_stop_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _Watched([(200.0, 100.5)] + [(1.0, 100.5)] * 10, monkeypatch).ended_at is not None


def test_the_thread_ends_with_stop() -> None:
    dog = Watchdog(60.0, lambda: None)
    dog.start()
    dog.stop()
    assert not any(thread.name == "octavo-watchdog" for thread in threading.enumerate())
