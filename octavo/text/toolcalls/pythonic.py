"""Calls written as a Python list, `[f(a=1), g(b="x")]`, where the answer begins (Llama 3.2 and 4, ToolACE), or between
tags (LFM2). Read by a tokenizer of Python's literals, never by Python itself."""

from __future__ import annotations

import json
import re
from typing import ClassVar

from octavo.text.toolcalls.family import ArgumentForm, Family, Form
from octavo.text.toolcalls.json_text import JsonText
from octavo.text.toolcalls.parser import Parser, Steps

TAGS = {"<|python_start|>": "<|python_end|>", "<|tool_call_start|>": "<|tool_call_end|>"}
_NAME = re.compile(r"[^\s()\[\]=,'\"]+")


class PythonText(JsonText):
    """A literal of Python, given on as JSON: both quotes, tuples, `\\'` and `\\xhh`."""

    opening: ClassVar[dict[str, tuple[str, str]]] = {"{": ("{", "}"), "[": ("[", "]"), "(": ("[", ")")}
    quotes = "\"'"
    plain = re.compile(r"[^\"'\\\x00-\x1f]+")

    def _string(self, text: str, at: int) -> int:
        char = text[at]
        if not self._escape and char in self.quotes and char != self._quote:
            self._put('\\"' if char == '"' else char)
            return at + 1
        return super()._string(text, at)

    def _in_escape(self, text: str, at: int) -> int:
        char = text[at]
        if self._escape == "\\" and char in "'\n":
            self._put("'" if char == "'" else "")
            self._escape = ""
            return at + 1
        if self._escape == "\\" and char == "x":
            self._escape = "\\u00"
            return at + 1
        return super()._in_escape(text, at)


class PythonicParser(Parser):
    def calls(self) -> Steps[None]:
        yield from self.blank_content()
        begins = (yield from self.peek()) == "["
        while begins or (marker := (yield from self.until(*TAGS))):
            self.hold()
            yield from self.blanks()
            if (yield from self.literal("[")):
                yield from self._list()
            if self.holding:
                self.no_call()
            elif not begins:
                yield from self.closed(TAGS[marker])
            begins = False

    def _list(self) -> Steps[None]:
        while True:
            yield from self.blanks()
            if not (yield from self._call()):
                return
            self.hold()
            yield from self.blanks()
            if (yield from self.literal("]")):
                self.skip()
                return
            if not (yield from self.literal(",")):
                return

    def _call(self) -> Steps[bool]:
        name = yield from self.name(_NAME, end="(")
        if name not in self.tools:
            return False
        yield from self.literal("(")
        yield from self.blanks()
        if (yield from self.literal(")")):
            self.begin(name)
            self.arguments("{}")
            self.end()
            return True
        key = yield from self._key()
        if not key:
            return False
        self.begin(name)
        whole = yield from self._arguments(key)
        self.end()
        return whole

    def _key(self) -> Steps[str]:
        key = yield from self.name(_NAME, end="= ")
        yield from self.blanks()
        return key if (yield from self.literal("=")) else ""

    def _arguments(self, key: str) -> Steps[bool]:
        """From behind the first `=` to `)`. What is not whole is closed."""
        before = "{"
        while key:
            yield from self.blanks()
            reader = PythonText()
            if not (yield from self._value(reader, before + json.dumps(key, ensure_ascii=False) + ": ")):
                before = ", " if reader.has_begun else before
                break
            before = ", "
            yield from self.blanks()
            if (yield from self.literal(")")):
                self.arguments("}")
                return True
            if not (yield from self.literal(",")):
                break
            yield from self.blanks()
            if (yield from self.literal(")")):
                self.arguments("}")
                return True
            key = yield from self._key()
        if not self.cut_off:
            self.arguments("}" if before == ", " else "{}")
        return False

    def _value(self, reader: PythonText, lead: str) -> Steps[bool]:
        """One argument, given on as it comes, behind `lead`. → whether it came whole; if not, it is closed."""
        while not reader.over and (yield from self.more()):
            given, end = reader.push(self._text, self._at)
            self.take(end - self._at)
            if given:
                self.arguments(lead + given)
                lead = ""
        whole = reader.done
        if not whole and not self.cut_off and (last := reader.closing()):
            self.arguments(lead + last)
        return whole


FAMILY = Family(
    name="pythonic",
    aliases=("llama4_pythonic", "toolace", "lfm2"),
    in_template=(("func_name1(",), ("<|tool_call_start|>",), ("<|tool_list_start|>",), ("<|python_start|>",)),
    parser=PythonicParser,
    markers=(*TAGS, *TAGS.values()),
    form=Form(
        start="[",
        before="",
        between="(",
        after=")",
        separator=", ",
        end="]",
        trigger=None,
        no_calls=r"([^\s\[](?s:.*))?",
        arguments=ArgumentForm(between="=", separator=", ", key=r"[A-Za-z_][A-Za-z_0-9]*"),
    ),
)
