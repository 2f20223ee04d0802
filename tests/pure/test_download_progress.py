"""Progress of downloads: plain lines, the bar, and that it ends in any case."""

from __future__ import annotations

import io

import pytest

from octavo.modelfiles.hub import progress
from octavo.modelfiles.hub.progress import Bar, Lines, console_progress, running


def test_lines_come_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    lines = Lines(out)
    with running(lines, "model", 40_000_000):
        for _ in range(4):
            now[0] += 6.0
            lines.advance(10_000_000)
        lines.note("a word")
    lines.done()
    assert out.getvalue().splitlines() == [
        "model: fetching 40.0 MB",
        "model: 20.0 MB of 40.0 MB",
        "model: 40.0 MB of 40.0 MB",
        "a word",
        "model: 40.0 MB in 24 s",
    ]


def test_the_bar_writes_to_standard_error_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    bar.note("before [it] starts")
    with pytest.raises(KeyboardInterrupt), running(bar, "model", 1000):
        bar.advance(400)
        bar.note("while [it] runs")
        raise KeyboardInterrupt
    bar.advance(1)
    bar.done()
    out, err = capsys.readouterr()
    assert out == ""
    assert "before [it] starts" in err and "while [it] runs" in err
    assert "model" in err and "0.4/1.0 kB" in err


def test_a_bar_where_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(console_progress(), Lines)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    assert isinstance(console_progress(), Bar)
