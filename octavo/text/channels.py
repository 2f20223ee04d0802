"""The channels of a model's output: reasoning, content and tool calls, told apart in its text as it streams.

`Channels` says how the text of one request divides; who renders the prompt knows (server/core/conversation.py,
client/local.py). client/stream.py feeds the text of each choice through a `Splitter`. Invariants: the result does not
depend on how the text was cut into pieces; every character is content, reasoning, part of a call, or a tag with the
white space around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

import msgspec

from octavo.errors import ConfigError
from octavo.text.toolcalls.parser import Content, Event, Parser
from octavo.text.toolcalls.registry import by_name
from octavo.text.toolcalls.tool import Tool
from octavo.types import ToolCall, ToolCallDelta

Tags = tuple[str, str]

REASONING: dict[str, Tags] = {
    "think": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
    "seed": ("<seed:think>", "</seed:think>"),
    "thought": ("<thought>", "</thought>"),
    "reasoning": ("<reasoning>", "</reasoning>"),
}
"""Tags around the reasoning, by the name for `--reasoning-parser`."""
_ALSO_CALLED = {
    "deepseek_r1": "think", "deepseek_v3": "think", "qwen3": "think", "glm45": "think", "ernie45": "think",
    "holo2": "think", "minimax_m2": "think", "hunyuan": "think", "olmo3": "think", "seed_oss": "seed",
}  # fmt: skip
"""Names that users of vLLM know."""
NO_REASONING = "none"

_MAX_LEADING = 64
"""White space in front of the opening tag."""


class Channels(msgspec.Struct, frozen=True, kw_only=True):
    """How one request's output divides."""

    reasoning: Tags | None = None
    """Tags that open and close the reasoning."""
    in_reasoning: bool = False
    """The prompt ends inside the reasoning: the template has opened it."""
    tool_parser: str | None = None
    """Name of the family (text/toolcalls) in whose form calls are written; None: calls are not looked for."""
    tools: tuple[Tool, ...] = ()
    """The tools that may be called."""
    max_calls: int | None = None
    """The output ends with so many calls."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Strings that must be seen even where special tokens are hidden."""
        return (*(self.reasoning or ()), *(by_name(self.tool_parser).markers if self.tool_parser else ()))


def reasoning_by_name(name: str) -> Tags | None:
    """Raises ConfigError that lists the known names."""
    if name == NO_REASONING:
        return None
    tags = REASONING.get(_ALSO_CALLED.get(name, name))
    if tags is None:
        known = ", ".join(sorted({*REASONING, *_ALSO_CALLED, NO_REASONING}))
        raise ConfigError(f"--reasoning-parser {name!r} is not known; there are {known}")
    return tags


def reasoning_of_template(source: str) -> Tags | None:
    """The tags that a chat template knows of."""
    return next((tags for tags in REASONING.values() if any(tag in source for tag in tags)), None)


def ends_inside(text: str, tags: Tags) -> bool:
    """Whether a text ends within the reasoning that it opened."""
    return text.rfind(tags[0]) > text.rfind(tags[1])


class Reasoning(NamedTuple):
    text: str


Part = Reasoning | Event


class _Stage(Enum):
    START = auto()
    REASONING = auto()
    GAP = auto()
    """White space between the reasoning and the content."""
    CONTENT = auto()


class Splitter:
    """Feed with `push`, end with `finish`."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._tags = channels.reasoning or ("", "")
        self._stage = _Stage.CONTENT if channels.reasoning is None else _Stage.START
        if channels.in_reasoning:
            self._stage = _Stage.REASONING
        self._waiting = ""
        """Text that may belong to a tag."""
        self._blanks: list[str] = []
        """White space at the end of the reasoning so far; it is dropped where the reasoning ends."""
        self._shown = False
        self._position = 0
        """Of the end of `_waiting` in all text."""
        self._parser: Parser | None = None

    @property
    def in_reasoning(self) -> bool:
        return self._stage is _Stage.REASONING

    @property
    def complete(self) -> bool:
        """As many calls as were allowed have been made."""
        return self._parser is not None and self._parser.complete

    @property
    def num_calls(self) -> int:
        return 0 if self._parser is None else self._parser.num_calls

    def push(self, text: str) -> list[Part]:
        parts: list[Part] = []
        self._position += len(text)
        if self._stage is not _Stage.CONTENT:
            text, self._waiting = self._waiting + text, ""
            if self._stage is _Stage.START:
                text = self._start(text)
            if self._stage is _Stage.REASONING:
                text = self._reasoning(text, parts)
            if self._stage is _Stage.GAP:
                text = text.lstrip()
                if text:
                    self._stage = _Stage.CONTENT
        if self._stage is _Stage.CONTENT and text:
            self._content(text, parts)
        return parts

    def finish(self, cut: bool) -> list[Part]:
        """The text is over; `cut`: because a limit was reached."""
        parts: list[Part] = []
        waiting, self._waiting = self._waiting, ""
        if self._stage is _Stage.REASONING:
            self._think(waiting, parts)
        elif waiting:
            self._content(waiting, parts)
        if self._parser is not None:
            parts += self._parser.finish(cut)
        return parts

    def _start(self, text: str) -> str:
        """Whether the output begins with the reasoning. → what is left of the text."""
        opening, body = self._tags[0], text.lstrip()
        if body.startswith(opening):
            self._stage = _Stage.REASONING
            return body[len(opening) :]
        if opening.startswith(body) and len(text) - len(body) <= _MAX_LEADING:
            self._waiting = text
            return ""
        self._stage = _Stage.CONTENT
        return text

    def _reasoning(self, text: str, parts: list[Part]) -> str:
        """→ what follows the reasoning."""
        closing = self._tags[1]
        end = text.find(closing)
        if end >= 0:
            self._think(text[:end], parts)
            self._stage = _Stage.GAP
            return text[end + len(closing) :]
        overhang = next((n for n in range(min(len(closing) - 1, len(text)), 0, -1) if closing.startswith(text[-n:])), 0)
        self._think(text[: len(text) - overhang], parts)
        self._waiting = text[len(text) - overhang :]
        return ""

    def _think(self, text: str, parts: list[Part]) -> None:
        """Without the white space at its ends."""
        body = text.rstrip()
        if body:
            first = body if self._shown else body.lstrip()
            parts.append(Reasoning("".join(self._blanks) + first if self._shown else first))
            self._blanks.clear()
            self._shown = True
        if self._shown:
            self._blanks.append(text[len(body) :])

    def _content(self, text: str, parts: list[Part]) -> None:
        channels = self._channels
        start = self._position - len(text)
        if channels.tool_parser is None:
            parts.append(Content(text, start))
            return
        if self._parser is None:
            self._parser = by_name(channels.tool_parser).parser(channels.tools, channels.max_calls, start)
        parts += self._parser.push(text)


def merged_parts(parts: Sequence[ToolCallDelta]) -> list[ToolCallDelta]:
    """The same with one part for each call in a row."""
    found: list[ToolCallDelta] = []
    texts: list[list[str]] = []
    for part in parts:
        if not found or found[-1].index != part.index:
            found.append(ToolCallDelta(index=part.index, id=part.id, name=part.name))
            texts.append([])
        texts[-1].append(part.arguments)
    for part, pieces in zip(found, texts, strict=True):
        part.arguments = "".join(pieces)
    return found


def joined_calls(parts: Sequence[ToolCallDelta]) -> list[ToolCall]:
    """The calls that these parts, in order, make up."""
    arguments: list[list[str]] = []
    heads: list[ToolCallDelta] = []
    for part in parts:
        if part.index == len(heads):
            heads.append(part)
            arguments.append([])
        arguments[part.index].append(part.arguments)
    return [
        ToolCall(id=head.id or "", name=head.name or "", arguments="".join(texts))
        for head, texts in zip(heads, arguments, strict=True)
    ]
