"""The terminal's screen while an answer comes: what may reach it, which part of it is drawn again, what keys do.

Invariants: a model's text cannot move the cursor or change the terminal's state; what has been typed during an answer
neither shows in it nor gets lost; the terminal is as it was when a block is left, however it is left.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from markdown_it import MarkdownIt
from rich.console import Console, RenderableType
from rich.control import Control
from rich.markdown import Markdown
from rich.segment import Segment, Segments

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_KEYS = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)
"""What keys without a character send, and the marks around a paste."""
_PARSER = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")
"""Without HTML, of which nothing would be shown."""
DRAWN_EVERY = 0.08
"""Seconds."""
DRAWING_SHARE = 8
"""At most one part in so many of the time goes into drawing."""


def visible(text: str) -> str:
    """The text without what a terminal would take as a command."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def markdown(text: str) -> Markdown:
    """Of a model's text: HTML in it is shown as it is written."""
    found = Markdown("")
    found.parsed = _PARSER.parse(visible(text))
    found.markup = text
    return found


class Region:
    """The last lines on the screen, drawn again and again. Other output may come after `clear` only."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lengths: list[int] = []
        """Columns of the lines that are drawn; the cursor is at the end of the last."""
        self._next = 0.0

    def draw(self, content: RenderableType, *, now: bool = False) -> None:
        """The end of `content`, as much as the screen holds; unless it was drawn just before."""
        started = time.monotonic()
        if not now and started < self._next:
            return
        height = max(self._console.height - 1, 1)
        lines = [_stripped(line) for line in self._console.render_lines(content, pad=False)][-height:]
        self.clear()
        joined = [part for line in lines for part in (*line, Segment.line())][:-1]
        self._console.print(Segments(joined), end="", soft_wrap=True)
        self._lengths = [Segment.get_line_length(line) for line in lines]
        took = time.monotonic() - started
        self._next = started + max(DRAWN_EVERY, DRAWING_SHARE * took)

    def clear(self) -> None:
        """Takes the lines away. A terminal that has become narrower meanwhile has broken them into more rows."""
        if not self._lengths:
            return
        width, height = self._console.size
        rows = sum(max(1, -(-length // width)) for length in self._lengths)
        up = min(rows, height) - 1
        self._lengths = []
        self._console.file.write("\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J")
        self._console.file.flush()


def _stripped(line: list[Segment]) -> list[Segment]:
    """Without blanks at its end, which would wrap when the terminal gets narrower."""
    kept = list(line)
    while kept and not kept[-1].text.strip():
        kept.pop()
    if kept:
        last = kept[-1]
        kept[-1] = Segment(last.text.rstrip(" "), last.style, last.control)
    return kept


class Stop:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.pressed = False


@contextmanager
def interruptible(*, twice: bool = True) -> Iterator[Stop]:
    """The first Ctrl-C only sets the flag, so that nothing is cut in two; the second, if `twice`, raises
    KeyboardInterrupt."""
    stop = Stop()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):  # it may be ignored
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop.pressed and twice:
            raise KeyboardInterrupt
        stop.pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class Typed:
    """What was typed during an answer."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        """Nothing but Ctrl-D."""


@contextmanager
def quiet_keys(console: Console) -> Iterator[Typed]:
    """Nothing that is typed shows; at the end it is in what is yielded. Ctrl-C works. Hides the cursor."""
    typed = Typed()
    fd = sys.stdin.fileno() if sys.stdin.isatty() else -1
    if fd < 0:
        yield typed
        return
    before = termios.tcgetattr(fd)
    quiet = termios.tcgetattr(fd)
    quiet[3] = quiet[3] & ~(termios.ECHO | termios.ICANON) | termios.NOFLSH  # Ctrl-C does not take the rest with it
    termios.tcsetattr(fd, termios.TCSADRAIN, quiet)
    console.control(Control.show_cursor(False))
    try:
        yield typed
    finally:
        console.control(Control.show_cursor(True))
        keys = _pending(fd)
        typed.text, typed.ended = as_typed(keys), keys.strip(b"\r\n") == b"\x04"
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _pending(fd: int) -> bytes:
    """Bytes that wait at a descriptor."""
    found = b""
    while select.select([fd], [], [], 0)[0]:
        piece = os.read(fd, 4096)
        if not piece:
            break
        found += piece
    return found


def as_typed(keys: bytes) -> str:
    """Key presses as the text of a message that is still being written: nothing in it sends it."""
    text = _KEYS.sub("", keys.decode(errors="replace")).replace("\r", "\n")
    found = ""
    for character in text:
        found = found[:-1] if character in "\x7f\x08" else found + character
    return _CONTROL.sub("", found).strip("\n")
