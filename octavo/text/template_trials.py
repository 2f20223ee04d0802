"""What a chat template takes, tried by rendering: tools, calls, late system messages, contents that are lists of parts.

Templates cannot be read for what they mean; what they write can. A trial puts words into messages that no template
holds and looks for them in the text. Each is made once for a template, when a request needs to know. Thread-safe.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

Data = dict[str, Any]
Show = Callable[[list[Data], list[Data] | None], str | None]
"""Renders messages and tools without a generation prompt's being refused; None where the template refuses them."""

_TOOL: Data = {
    "type": "function",
    "function": {
        "name": "find_probe",
        "description": "Finds.",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "What."}}},
    },
}
_FIRST, _SECOND = "zqmaple", "zqbirch"
_WORDS = f"{_FIRST} {_SECOND}"
_PARTS = [{"type": "text", "text": _FIRST}, {"type": "text", "text": _SECOND}]
_TEXT = '{"key": "value"}'
_MAX_SHAPES = 256
_MISSING = object()


class Shape(NamedTuple):
    """What a template may look at before it takes a message's content."""

    role: str
    with_tools: bool
    has_calls: bool = False
    has_reasoning: bool = False


class Takes:
    def __init__(self, show: Show) -> None:
        self._show = show
        self._parts: dict[Shape, bool] = {}

    @cached_property
    def tools(self) -> bool | None:
        """Whether the tools of a request appear in its prompt; None where the template refuses the trial."""
        text = self._show([_said("user", "a")], [_TOOL])
        return None if text is None else _TOOL["function"]["name"] in text

    @cached_property
    def mapping_arguments(self) -> bool:
        """Whether a call's arguments may be given as a mapping."""
        return self._takes_calls({"key": "value"})

    @cached_property
    def text_arguments(self) -> bool:
        """The same for text, however it is shown."""
        return self._takes_calls(_TEXT)

    @cached_property
    def verbatim_arguments(self) -> bool:
        """Whether arguments given as text are shown as they are."""
        text = self._show(self._call_turns(_TEXT), [_TOOL])
        return text is not None and _TEXT in text

    @cached_property
    def several_calls(self) -> bool:
        """Whether one message may hold more calls than one."""
        arguments = self._good_arguments
        return self._takes_calls(arguments, count=2) or not self._takes_calls(arguments)

    @cached_property
    def calls_without_content(self) -> bool:
        """Whether a message with calls may have no content at all."""
        return self._show(self._call_turns(self._good_arguments, content=_MISSING), [_TOOL]) is not None

    @cached_property
    def turns_without_content(self) -> bool:
        """The same for an assistant's message without calls."""
        return self._show([_said("user", "a"), {"role": "assistant"}, _said("user", "b")], None) is not None

    @cached_property
    def system(self) -> bool:
        """Whether a system message is shown, not refused or passed over."""
        return _has(self._show([_said("system", _WORDS), _said("user", "a")], None), _WORDS)

    @cached_property
    def late_system(self) -> bool:
        """The same for a system message that comes later than first."""
        turns = [_said("user", "a"), _said("system", _WORDS), _said("assistant", "b"), _said("user", "c")]
        return _has(self._show(turns, None), _WORDS)

    def parts(self, shape: Shape) -> bool:
        """Whether a message's content may be a list of texts: each of them is shown, and as text. The content of a
        tool's result may become JSON, which is what templates write results as."""
        found = self._parts.get(shape)
        if found is None:
            found = self._try_parts(shape)
            if len(self._parts) < _MAX_SHAPES:
                self._parts[shape] = found
        return found

    def _try_parts(self, shape: Shape) -> bool:
        tools = [_TOOL] if shape.with_tools else None
        good = False
        for around in (self._in_the_middle, self._at_the_end, self._turn):
            if good and around == self._turn:
                break  # a message alone says little where others could be tried
            as_text, as_parts = (self._show(around(shape, said), tools) or "" for said in (_WORDS, _PARTS))
            if _FIRST in as_text or _FIRST in as_parts:
                good = _shows_as_much(as_parts, as_text, is_result=shape.role == "tool")
                if not good:
                    return False
        return good

    def _in_the_middle(self, shape: Shape, content: Any) -> list[Data]:
        first = [] if shape.role in ("system", "developer", "user") else [_said("user", "a")]
        if shape.role == "tool":
            return [
                *self._call_turns(self._good_arguments, result=content),
                _said("assistant", "b"),
                _said("user", "c"),
            ]
        turn = self._turn(shape, content)
        if shape.role == "user":
            return [*turn, _said("assistant", "b"), *turn]
        return [*first, *turn, _said("user", "b")]

    def _at_the_end(self, shape: Shape, content: Any) -> list[Data]:
        if shape.role == "tool":
            return self._call_turns(self._good_arguments, result=content)
        if shape.role == "system":
            return [*self._turn(shape, content), _said("user", "a"), _said("assistant", "b"), _said("user", "c")]
        return [*([] if shape.role == "user" else [_said("user", "a")]), *self._turn(shape, content)]

    def _turn(self, shape: Shape, content: Any) -> list[Data]:
        message = _said(shape.role, content)
        if shape.has_reasoning:
            message["thinking"] = message["reasoning_content"] = "zqthought"
        if not shape.has_calls:
            return [message]
        calls, results = _calls(self._good_arguments, 1, "r")
        return [{**message, "tool_calls": calls}, *results]

    @cached_property
    def _good_arguments(self) -> Any:
        return {"key": "value"} if self.mapping_arguments else _TEXT

    def _takes_calls(self, arguments: Any, count: int = 1) -> bool:
        text = self._show(self._call_turns(arguments, count), [_TOOL])
        return text is not None and "{'key'" not in text  # as Python would print it

    def _call_turns(self, arguments: Any, count: int = 1, content: Any = "", result: Any = "b") -> list[Data]:
        calls, results = _calls(arguments, count, result)
        message = {"role": "assistant"} if content is _MISSING else _said("assistant", content)
        return [_said("user", "a"), {**message, "tool_calls": calls}, *results]


def _said(role: str, content: Any) -> Data:
    return {"role": role, "content": content}


def _calls(arguments: Any, count: int, result: Any) -> tuple[list[Data], list[Data]]:
    """So many calls of the tool, with ids that Mistral's templates take, and their results."""
    ids = [f"abcdefgh{i}" for i in range(count)]
    function = {"name": _TOOL["function"]["name"], "arguments": arguments}
    calls = [{"id": call_id, "type": "function", "function": function} for call_id in ids]
    return calls, [{**_said("tool", result), "tool_call_id": call_id} for call_id in ids]


def _has(text: str | None, words: str) -> bool:
    return text is not None and words in text


def _shows_as_much(as_parts: str, as_text: str, *, is_result: bool) -> bool:
    if min(as_parts.count(word) for word in (_FIRST, _SECOND)) < max(as_text.count(_WORDS), 1):
        return False
    if not is_result and (bare := _bare(as_text, _WORDS)):
        return min(_bare(as_parts, word) for word in (_FIRST, _SECOND)) >= bare
    keys = ["'type'"] if is_result else ["'type'", '"type"']
    return all(as_parts.count(key) <= as_text.count(key) for key in keys)


def _bare(text: str, words: str) -> int:
    """How often the words stand in the text, not counted where they are a quoted value."""
    return len(re.findall(f"(?<![\"']){words}|{words}(?![\"'])", text))
