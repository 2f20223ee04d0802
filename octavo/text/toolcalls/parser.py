"""What all parsers of tool calls share: text that comes in pieces is told apart into content and calls.

A family's parser (hermes.py and the others) is a generator, `calls`, that reads with the methods here and is resumed
when more text has come; text/channels.py feeds it. Invariants: every character becomes content or belongs to a call,
in order and once, however the text was cut; a call that turns out not to be one is content; nothing is read twice, so
time is linear; once a call was announced it stays, and its arguments are closed so that they are JSON.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

from octavo.text.toolcalls.json_text import JsonText
from octavo.text.toolcalls.tool import Tool
from octavo.types import ToolCallDelta

T = TypeVar("T")

MAX_NAME = 256
_BLANKS = re.compile(r"\s+")


class Content(NamedTuple):
    """Text for the reader, and where it starts in all text that was pushed."""

    text: str
    start: int


class _Complete(Exception):
    """Leaves `calls`."""


Event = Content | ToolCallDelta
Steps = Generator[None, None, T]
"""Yields when it needs more text."""


class Parser:
    """Feed with `push`, end with `finish`; both give what is certain by then."""

    def __init__(self, tools: Sequence[Tool], limit: int | None = None, start: int = 0) -> None:
        """`tools`: those that may be called. `limit`: after so many calls it is `complete`. `start`: of the first
        text in all text."""
        self.tools = {tool.name: tool for tool in tools}
        self.complete = False
        """As many calls as were allowed have been made: nothing after them counts."""
        self.num_calls = 0
        self._limit = limit
        self._text = ""
        self._at = 0
        self._ended = self._cut = False
        self._position = start
        """Of `_text[_at]` in all text."""
        self._blanks: list[str] = []
        """White space in front of what may be a call."""
        self._content_end = start
        """Where the content given out, with the blanks, ends."""
        self._held: list[str] | None = None
        """What was read since `hold`."""
        self._has_sign = False
        """It began with a marker that nothing but a call begins with."""
        self._events: list[Event] = []
        self._steps = self._all()

    def push(self, text: str) -> list[Event]:
        self._text, self._at = self._text[self._at :] + text, 0
        return self._go()

    def finish(self, cut: bool) -> list[Event]:
        """The text is over. `cut`: because a limit was reached, so that a call begun stays as it is."""
        self._ended, self._cut = True, cut
        return self._go()

    def calls(self) -> Steps[None]:
        """Of a family: reads everything."""
        raise NotImplementedError
        yield

    def _all(self) -> Steps[None]:
        try:
            yield from self.calls()
        except _Complete:
            return
        while (yield from self.more()):
            self._content(self.take(len(self._text) - self._at))
        if not self.num_calls:
            self._flush_blanks()

    def _go(self) -> list[Event]:
        if not self.complete:
            next(self._steps, None)
        events, self._events = self._events, []
        return events

    # -- reading

    def blank_content(self) -> Steps[None]:
        """White space that is content unless a call follows."""
        while (yield from self.more()):
            found = _BLANKS.match(self._text, self._at)
            if found is None:
                return
            self._content(self.take(found.end() - found.start()))

    def more(self) -> Steps[bool]:
        """Whether there is text, once that is known."""
        while self._at == len(self._text) and not self._ended:
            yield
        return self._at < len(self._text)

    def peek(self) -> Steps[str]:
        """The next character, "" at the end."""
        return self._text[self._at] if (yield from self.more()) else ""

    def take(self, count: int) -> str:
        text = self._text[self._at : self._at + count]
        self._at += len(text)
        self._position += len(text)
        if self._held is not None:
            self._held.append(text)
        return text

    def blanks(self) -> Steps[None]:
        while (yield from self.more()):
            found = _BLANKS.match(self._text, self._at)
            if found is None:
                return
            self.take(found.end() - found.start())

    def untake(self, count: int) -> None:
        """Gives back the end of what was just taken."""
        self._at -= count
        self._position -= count
        if self._held:
            self._held[-1] = self._held[-1][:-count]

    def literal(self, text: str) -> Steps[bool]:
        """Takes `text` if it comes next."""
        while True:
            have = self._text[self._at : self._at + len(text)]
            if have == text:
                self.take(len(text))
                return True
            if self._ended or not text.startswith(have):
                return False
            yield

    def name(self, pattern: re.Pattern[str], end: str) -> Steps[str]:
        """Characters of a name up to one that is in `end`, which is not taken; "" when something else comes."""
        found: list[str] = []
        while sum(map(len, found)) <= MAX_NAME and (yield from self.more()):
            match = pattern.match(self._text, self._at)
            if match is None:
                return "".join(found) if self._text[self._at] in end else ""
            found.append(self.take(match.end() - match.start()))
        return ""

    def until(self, *markers: str) -> Steps[str]:
        """Content up to the first of the markers, which is taken under `hold`; "" at the end."""
        while (yield from self.more()):
            places = [(self._text.find(marker, self._at), -len(marker), marker) for marker in markers]
            found = min((place for place in places if place[0] >= 0), default=None)
            end = len(self._text) - self._overhang(markers) if found is None else found[0]
            self._content(self.take(end - self._at))
            if found is not None:
                self.hold()
                self._has_sign = not found[2][0].isspace()
                return self.take(len(found[2]))
            if self._at < len(self._text):
                if self._ended:
                    rest = self.take(len(self._text) - self._at)
                    if not (self._cut and self.num_calls):  # else it is the beginning of the next call
                        self._content(rest)
                else:
                    yield
        return ""

    def _overhang(self, markers: Sequence[str]) -> int:
        """Length of the longest beginning of a marker that the text ends with."""
        longest = min(max(map(len, markers)) - 1, len(self._text) - self._at)
        for length in range(longest, 0, -1):
            end = self._text[-length:]
            if any(marker.startswith(end) for marker in markers):
                return length
        return 0

    # -- what it is

    def hold(self) -> None:
        """From here on it may be a call."""
        if self._held is None:
            self._held = []

    @property
    def cut_off(self) -> bool:
        """A limit ended the text: what is not whole stays so."""
        return self._ended and self._cut

    @property
    def holding(self) -> bool:
        return self._held is not None

    def no_call(self) -> None:
        """What was read since `hold` is content; but of a call that a limit cut off before its name was known, nobody
        wants the beginning."""
        held, self._held = self._held or [], None
        if self.cut_off and self._has_sign:
            self._blanks.clear()
        else:
            self._content("".join(held))
        self._has_sign = False

    def begin(self, name: str) -> None:
        """It is a call: what was read since `hold` was its syntax."""
        self._held, self._has_sign = None, False
        self._blanks.clear()
        self._events.append(ToolCallDelta(index=self.num_calls, id=self.call_id(), name=name))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        """A piece of the arguments of the call that was begun last."""
        if not text:
            return
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCallDelta):
            last.arguments += text
        else:
            self._events.append(ToolCallDelta(index=self.num_calls - 1, arguments=text))

    def end(self) -> None:
        """The call that was begun last is whole."""
        if self._limit is not None and self.num_calls >= self._limit:
            self.complete = True
            raise _Complete

    def skip(self) -> None:
        """What was read since `hold` belongs to no reader."""
        self._held = None

    def closed(self, tag: str) -> Steps[None]:
        """Takes the tag that ends a call, if it comes."""
        self.hold()
        yield from self.blanks()
        if (yield from self.literal(tag)):
            self.skip()
        else:
            self.no_call()

    def call_id(self) -> str:
        return f"call_{secrets.token_hex(12)}"

    def _content(self, text: str) -> None:
        """Shows text that was just read. White space at its end waits: in front of a call nobody wants it."""
        if not text:
            return
        if self._content_end != self._position - len(text):  # syntax came in between
            self._flush_blanks()
            self._content_end = self._position - len(text)
        body = text.rstrip()
        if body:
            before = "".join(self._blanks)
            self._blanks.clear()
            self._events.append(Content(before + body, self._content_end - len(before)))
        self._content_end += len(text)
        if len(body) < len(text):
            self._blanks.append(text[len(body) :])

    def _flush_blanks(self) -> None:
        text = "".join(self._blanks)
        self._blanks.clear()
        if text:
            self._events.append(Content(text, self._content_end - len(text)))

    # -- JSON

    def value(self, reader: JsonText) -> Steps[str | None]:
        """A whole JSON value; None where there is none."""
        out: list[str] = []
        while not reader.over and (yield from self.more()):
            given, end = reader.push(self._text, self._at)
            self.take(end - self._at)
            out.append(given)
        if not reader.done:
            return None
        return "".join(out)

    def value_arguments(self, reader: JsonText) -> Steps[bool]:
        """The arguments of the call that was begun last, given on as they come. → whether they came whole; if not,
        they are closed, unless a limit cut them off."""
        while not reader.over and (yield from self.more()):
            given, end = reader.push(self._text, self._at)
            self.take(end - self._at)
            self.arguments(given)
        whole = reader.done
        if not whole and not self.cut_off:
            self.arguments(reader.closing())
        return whole
