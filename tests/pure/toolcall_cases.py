"""What models write when they call tools, and what has to come of it: shared by the tests of parsers and channels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from octavo.text.toolcalls.parser import Content, Event
from octavo.text.toolcalls.registry import by_name
from octavo.text.toolcalls.tool import Tool

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "unit": {"enum": ["c", "f"]},
        "note": {"type": ["string", "null"]},
        "spots": {"type": "array"},
    },
}
TOOLS = (Tool(name="get_weather", parameters=WEATHER), Tool(name="f"), Tool(name="ns.add-two"))

Calls = list[tuple[str, str]]


class Read(NamedTuple):
    content: str
    calls: Calls


def collected(text: str, events: Iterable[Event]) -> Read:
    """Content and calls that the events make up; checks what holds of any events."""
    content, calls, shown = "", list[list[str]](), 0
    for event in events:
        if isinstance(event, Content):
            assert event.text and text[event.start : event.start + len(event.text)] == event.text
            assert event.start >= shown
            shown = event.start + len(event.text)
            content += event.text
            continue
        if event.id is not None:
            assert event.index == len(calls) and event.name
            calls.append([event.name, ""])
        else:
            assert event.name is None and event.index == len(calls) - 1 and event.arguments
        calls[event.index][1] += event.arguments
    return Read(content, [(name, arguments) for name, arguments in calls])


def read(family: str, pieces: Sequence[str], *, cut: bool = False, limit: int | None = None) -> Read:
    parser = by_name(family).parser(TOOLS, limit)
    events = [event for piece in pieces for event in parser.push(piece)]
    return collected("".join(pieces), [*events, *parser.finish(cut)])


def calls_of(found: Read) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in found.calls]


class Case(NamedTuple):
    family: str
    text: str
    content: str
    calls: list[tuple[str, Any]]


HERMES = [
    Case("hermes", "Just words.", "Just words.", []),
    Case("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": [1, {"b": null}]}}\n</tool_call>', "",
         [("f", {"a": [1, {"b": None}]})]),
    Case("hermes", 'Let me see.\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'
         '<tool_call>{"arguments": {"city": "Köln 🌧"}, "name": "get_weather"}</tool_call>', "Let me see.",
         [("f", {}), ("get_weather", {"city": "Köln 🌧"})]),
    Case("hermes", '<tool_call>[{"name": "f"}, {"name": "f", "arguments": "{\\"a\\": 1}"}]</tool_call>', "",
         [("f", {}), ("f", {"a": 1})]),
    Case("hermes", '<tool_call>{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}</tool_call>', "",
         [("f", {"a": 1})]),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a": "line\nbreak \\d", "b": True,}}</tool_call> ok', " ok",
         [("f", {"a": "line\nbreak \\d", "b": True})]),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', "", [("f", {"a": 1})]),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a": {"b": "x', "", [("f", {"a": {"b": "x"}})]),
    Case("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1, "b": oops}}</tool_call>', "oops}}</tool_call>",
         [("f", {"a": 1})]),
    Case("hermes", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
         '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', []),
    Case("hermes", '<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    Case("hermes", "Write <tool_call> and <tool_call> around it.", "Write <tool_call> and <tool_call> around it.", []),
    Case("hermes", '<tool_call>not a call</tool_call> <tool_call>{"name": "f"}</tool_call>',
         "<tool_call>not a call</tool_call>", [("f", {})]),
]  # fmt: skip
LLAMA = [
    Case("llama3_json", '{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
    Case("llama3_json", '<|python_tag|>{"name": "f", "arguments": {"a": 1}}; {"name": "f", "parameters": {}}', "",
         [("f", {"a": 1}), ("f", {})]),
    Case("llama3_json", 'I will look.\n{"type": "function", "name": "f", "parameters": {"a": "}"}}', "I will look.",
         [("f", {"a": "}"})]),
    Case("llama3_json", '{"name": "Bob", "parameters": {"age": 3}}', '{"name": "Bob", "parameters": {"age": 3}}', []),
    Case("llama3_json", '{"name": "f"}', '{"name": "f"}', []),
    Case("llama3_json", 'Use {"name": "f", "parameters": {}} here', 'Use {"name": "f", "parameters": {}} here', []),
    Case("llama3_json", '{"a": 1}\nnot a call', '{"a": 1}\nnot a call', []),
]  # fmt: skip
MISTRAL = [
    Case("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "get_weather", "arguments": {}}]', "",
         [("f", {"a": 1}), ("get_weather", {})]),
    Case("mistral", 'So: [TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]ns.add-two[CALL_ID]abcdefghi[ARGS]{"b": 2}', "So:",
         [("f", {"a": 1}), ("ns.add-two", {"b": 2})]),
    Case("mistral", '[TOOL_CALLS]f{"a": 1}', "", [("f", {"a": 1})]),
    Case("mistral", "[TOOL_CALLS]nothing", "[TOOL_CALLS]nothing", []),
    Case("mistral", '[{"name": "f", "arguments": {}}]', '[{"name": "f", "arguments": {}}]', []),
]  # fmt: skip
GLM = [
    Case("glm45", "Well.<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Sankt \"Gallen\"\n</arg_value>\n"
         "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>", "Well.",
         [("get_weather", {"city": 'Sankt "Gallen"\n', "days": 3})]),
    Case("glm45", "<tool_call>f<arg_key>a</arg_key><arg_value>[1, 2]</arg_value></tool_call>\n<tool_call>f</tool_call>",
         "",
         [("f", {"a": [1, 2]}), ("f", {})]),
    Case("glm45", "<tool_call>get_weather<arg_key>days</arg_key><arg_value>many</arg_value>", "",
         [("get_weather", {"days": "many"})]),
    Case("glm45", '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', "", [("f", {"a": 1})]),
    Case("glm45", "<tool_call>who<arg_key>a</arg_key>", "<tool_call>who<arg_key>a</arg_key>", []),
    Case("glm4", 'get_weather\n{"city": "Bern"}', "", [("get_weather", {"city": "Bern"})]),
    Case("glm4", 'First this:\nf\n{"a": 1}', "First this:", [("f", {"a": 1})]),
    Case("glm4", "f\nis a letter", "f\nis a letter", []),
]  # fmt: skip
PYTHONIC = [
    Case("pythonic", """[get_weather(city='It\\'s "Bern"', days=3), f(),"""
         " ns.add-two(a=[1, (2, 3)], b={'k': None}, c=-1e3)]",
         "", [("get_weather", {"city": 'It\'s "Bern"', "days": 3}), ("f", {}),
              ("ns.add-two", {"a": [1, [2, 3]], "b": {"k": None}, "c": -1000.0})]),
    Case("pythonic", "Here:<|tool_call_start|>[f(a=True)]<|tool_call_end|>", "Here:", [("f", {"a": True})]),
    Case("pythonic", "[f(a=1), g(b=2)]", ", g(b=2)]", [("f", {"a": 1})]),
    Case("pythonic", "[f(1)]", "[f(1)]", []),
    Case("pythonic", "[1, 2, 3]", "[1, 2, 3]", []),
    Case("pythonic", "[f(a=[x for x in y])]", "x for x in y])]", [("f", {"a": []})]),
]  # fmt: skip
QWEN_CODER = [
    Case("qwen3_coder", "Editing.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n  <b>Bern</b>\n\n"
         "</parameter>\n<parameter=days>\n5\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n</function>\n</tool_call>",
         "Editing.",
         [("get_weather", {"city": "  <b>Bern</b>\n", "days": 5, "exact": True})]),
    Case("qwen3_coder", "<function=f>\n</function>", "", [("f", {})]),
    Case("qwen3_coder", "<tool_call><function=f><parameter=a>{\"k\": [1]}</parameter></function></tool_call>", "",
         [("f", {"a": {"k": [1]}})]),
    Case("qwen3_coder", "<tool_call><function=get_weather><parameter=note>null</parameter>", "",
         [("get_weather", {"note": None})]),
    Case("qwen3_coder", "<function=nobody>", "<function=nobody>", []),
]  # fmt: skip
CASES = [*HERMES, *LLAMA, *MISTRAL, *GLM, *PYTHONIC, *QWEN_CODER]
NAMES = ("hermes", "llama3_json", "mistral", "glm45", "glm4", "pythonic", "qwen3_coder")
