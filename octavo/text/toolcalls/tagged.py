"""Arguments written as one tagged text each, not as JSON: the base of GLM 4.5 and Qwen3-Coder.

The tool's schema says what a text means: where a string is allowed and nothing else, it is given on as it comes; else
it is read as JSON first.
"""

from __future__ import annotations

import json
from typing import Any

from octavo.text.toolcalls.hermes import HermesParser
from octavo.text.toolcalls.parser import Steps
from octavo.text.toolcalls.tool import Tool

MAX_VALUE = 1 << 20
"""A longer text is not read as JSON."""


class TaggedParser(HermesParser):
    """Also reads what Hermes writes between the same tags."""

    def argument(self, tool: Tool, key: str, is_first: bool, end: str, line_breaks: bool) -> Steps[bool]:
        """The text up to `end`, as the argument `key`. `line_breaks`: one at each side of it is not part of it.
        → whether `end` came."""
        self.arguments(("{" if is_first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        properties = (tool.parameters or {}).get("properties")
        types = types_of(properties.get(key) if isinstance(properties, dict) else None)
        if line_breaks:
            yield from self.literal("\n")
        if types == {"string"}:
            self.arguments('"')
            whole = yield from self._string(end, line_breaks)
            if whole or not self.cut_off:
                self.arguments('"')
            return whole
        pieces: list[str] = []
        whole = yield from self._text_until(end, pieces)
        text = "".join(pieces)
        if whole or not self.cut_off:
            self.arguments(_as_json(text.removesuffix("\n") if line_breaks else text, types))
        return whole

    def _string(self, end: str, line_breaks: bool) -> Steps[bool]:
        """Gives the text on as the inside of a JSON string; a line break waits, as it may be the last."""
        waiting = ""
        while (yield from self.more()):
            text, found = yield from self._piece(end)
            text = waiting + text
            waiting = "\n" if line_breaks and text.endswith("\n") else ""
            self.arguments(json.dumps(text[: len(text) - len(waiting)], ensure_ascii=False)[1:-1])
            if found:
                return True
        return False

    def _text_until(self, end: str, pieces: list[str]) -> Steps[bool]:
        while (yield from self.more()):
            text, found = yield from self._piece(end)
            pieces.append(text)
            if found:
                return True
        return False

    def _piece(self, end: str) -> Steps[tuple[str, bool]]:
        """Text in front of `end`, and whether `end` came, which is taken too."""
        place = self._text.find(end, self._at)
        if place >= 0:
            text = self.take(place - self._at)
            self.take(len(end))
            return text, True
        text = self.take(len(self._text) - self._overhang((end,)) - self._at)
        if not text and self._ended:
            return self.take(len(self._text) - self._at), False
        if not text:
            yield
        return text, False


def types_of(schema: Any) -> set[str]:
    """JSON types that an argument's schema names; empty: any. A text is read as JSON unless it is {"string"}."""
    if not isinstance(schema, dict):
        return set()
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {k for k in kind if isinstance(k, str)}
    if isinstance(values := schema.get("enum"), list) and values and all(isinstance(v, str) for v in values):
        return {"string"}
    return set()


def _as_json(text: str, types: set[str]) -> str:
    """The argument's text as JSON; as a string where it is none, or none of the allowed kind."""
    value = _loads(text.strip())
    if value is not _NONE and (not types or _kind(value) & types):
        return json.dumps(value) if text.strip() in _SPOKEN else text.strip()
    return json.dumps(text, ensure_ascii=False)


_NONE = object()
_SPOKEN = {"True": True, "False": False, "None": None}


def _loads(text: str) -> Any:
    if text in _SPOKEN:
        return _SPOKEN[text]
    if len(text) > MAX_VALUE:
        return _NONE
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _NONE


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _kind(value: Any) -> set[str]:
    """The names JSON Schema has for the kind of a value."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    if value is None:
        return {"null"}
    return {"string"} if isinstance(value, str) else {"array"} if isinstance(value, list) else {"object"}
