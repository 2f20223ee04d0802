"""How a download tells its progress: a small protocol, a Rich bar on a terminal, plain lines elsewhere, or nothing.

Called by the sources in this folder, from one thread at a time. Everything goes to standard error: standard output
belongs to the command. Rich is imported only when a bar is drawn.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

logger = logging.getLogger(__name__)

LINE_EVERY = 10.0
"""Seconds between two plain lines of one download."""


class Progress(Protocol):
    """One download: `start` once, `advance` as bytes arrive, `note` for what matters, `done` in any case."""

    def start(self, label: str, total: int | None) -> None: ...

    def advance(self, num_bytes: int) -> None:
        """`num_bytes` more have arrived; negative when a part is fetched again."""

    def note(self, text: str) -> None: ...

    def done(self) -> None:
        """The download ended, well or not. May be called again."""


class Silent:
    """Says nothing."""

    def start(self, label: str, total: int | None) -> None:
        pass

    def advance(self, num_bytes: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def done(self) -> None:
        pass


class Lines:
    """Plain lines for logs and pipes: one at the start, one every few seconds, one at the end."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._label: str | None = None
        self._total: int | None = None
        self._arrived = 0
        self._started = self._last = 0.0

    def start(self, label: str, total: int | None) -> None:
        self._label, self._total, self._arrived = label, total, 0
        self._started = self._last = time.monotonic()
        self.note(f"{label}: fetching" + (f" {megabytes(total)}" if total else ""))

    def advance(self, num_bytes: int) -> None:
        self._arrived += num_bytes
        now = time.monotonic()
        if now - self._last >= LINE_EVERY:
            self._last = now
            of = f" of {megabytes(self._total)}" if self._total else ""
            self.note(f"{self._label}: {megabytes(self._arrived)}{of}")

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def done(self) -> None:
        if self._label is not None:
            seconds = time.monotonic() - self._started
            self.note(f"{self._label}: {megabytes(self._arrived)} in {seconds:.0f} s")
            self._label = None


class Bar:
    """A Rich progress bar with size, speed and time left."""

    def __init__(self) -> None:
        self._bars: Any = None  # rich.progress.Progress, imported in start

    def start(self, label: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self.done()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bars.start()
        self._bars.add_task(label, total=total)

    def advance(self, num_bytes: int) -> None:
        if self._bars is not None:
            self._bars.advance(self._bars.task_ids[0], num_bytes)

    def note(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def done(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class Logged(Lines):
    """The same lines as records of the log."""

    def note(self, text: str) -> None:
        logger.info("%s", text)


def console_progress(*, as_log: bool = False) -> Progress:
    """A bar where somebody watches, lines where not, and records for machines that read every line."""
    if as_log:
        return Logged()
    return Bar() if sys.stderr.isatty() else Lines()


@contextmanager
def running(progress: Progress, label: str, total: int | None) -> Iterator[Progress]:
    """Calls start, and done in any case."""
    progress.start(label, total)
    try:
        yield progress
    finally:
        progress.done()


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
