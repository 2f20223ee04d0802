"""Calls written as JSON objects, `{"name": …, "arguments": {…}}`: the base of the families that write them so.

Takes what models make of it: either order of the keys, `parameters` for `arguments`, arguments as a text that holds
JSON, a list of calls, OpenAI's `{"type": "function", "function": {…}}`, and more keys. An object whose name is not
that of a tool is no call.
"""

from __future__ import annotations

import json
from typing import Any

from octavo.text.toolcalls.json_text import JsonText
from octavo.text.toolcalls.parser import Parser, Steps

_NAME_KEYS = ("name", "function")
_ARGUMENT_KEYS = ("arguments", "parameters")


class JsonCalls(Parser):
    needs_arguments = False
    """An object without arguments, or with other keys, is no call: this form has no sign of its own."""

    def json_calls(self) -> Steps[bool]:
        """One object, or a list of them. → whether they were calls, whole ones; held text stays held if not."""
        if (yield from self.peek()) != "[":
            return (yield from self.json_call())
        self.hold()
        yield from self.literal("[")
        while True:
            yield from self.blanks()
            if not (yield from self.json_call()):
                return False
            self.hold()
            yield from self.blanks()
            if (yield from self.literal("]")):
                self.skip()
                return True
            if not (yield from self.literal(",")):
                return False

    def json_call(self) -> Steps[bool]:
        """As `json_calls`, for one object."""
        self.hold()
        call = _Call()
        if not (yield from self._members(call)):
            if call.begun:
                self.end()
            return False
        if not call.begun and not self._begin(call):
            return False
        self.skip()
        self.end()
        return True

    def _begin(self, call: _Call) -> bool:
        """Announces a call whose object was read whole."""
        given = "{}" if call.arguments is None and not self.needs_arguments else call.arguments
        if call.name not in self.tools or given is None:
            return False
        self.begin(call.name)
        self.arguments(given)
        return True

    def _members(self, call: _Call) -> Steps[bool]:
        """`{` to `}`. False: it is no object, or the call's arguments ended early."""
        if not (yield from self.literal("{")):
            return False
        while True:
            yield from self.blanks()
            if (yield from self.literal("}")):
                return True
            key = yield from self._text_value()
            yield from self.blanks()
            if key is None or not (yield from self.literal(":")):
                return False
            yield from self.blanks()
            if not (yield from self._member(call, key)):
                return False
            yield from self.blanks()
            if not (yield from self.literal(",")) and (yield from self.peek()) != "}":
                return False

    def _member(self, call: _Call, key: str) -> Steps[bool]:
        opening = yield from self.peek()
        if key in _NAME_KEYS and opening == '"' and not call.name:
            call.name = (yield from self._text_value()) or ""
            return call.name in self.tools
        if key == "function" and opening == "{":
            return (yield from self._members(call))
        if self.needs_arguments and key not in (*_NAME_KEYS, *_ARGUMENT_KEYS, "type", "id"):
            return False
        if key not in _ARGUMENT_KEYS or call.begun:
            return (yield from self.value(JsonText())) is not None
        if opening == "{" and call.name:
            self.begin(call.name)
            call.begun = True
            return (yield from self.value_arguments(JsonText()))
        text = yield from self.value(JsonText())
        call.arguments = None if text is None else _object(text)
        return call.arguments is not None

    def _text_value(self) -> Steps[str | None]:
        if (yield from self.peek()) != '"':
            return None
        text = yield from self.value(JsonText())
        return None if text is None else _loads(text)


class _Call:
    """What is known of the call being read."""

    def __init__(self) -> None:
        self.name = ""
        self.arguments: str | None = None
        self.begun = False


def _object(text: str) -> str | None:
    """JSON text that is, or as a string holds, an object: that object's text."""
    value = _loads(text)
    if isinstance(value, dict):
        return text
    if value is None:
        return "{}"
    if isinstance(value, str) and isinstance(_loads(value), dict):
        return value
    return None


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return False
