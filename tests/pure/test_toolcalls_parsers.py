"""The parsers of tool calls: every family's forms, however the text is cut, and whatever a model may write instead."""

from __future__ import annotations

import json
import warnings
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toolcall_cases import CASES, NAMES, TOOLS, Case, calls_of, read

from octavo.errors import ConfigError
from octavo.text.toolcalls.registry import FAMILIES, by_name, of_template


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.text[:24]!r}")
def test_forms(case: Case) -> None:
    whole = read(case.family, [case.text])
    assert (whole.content, calls_of(whole)) == (case.content, case.calls)
    assert read(case.family, list(case.text)) == whole


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}-{case.text[:24]!r}")
def test_an_end_anywhere(case: Case) -> None:
    """An answer may break off at any character: by itself, then every call is JSON, or at a limit."""
    for end in range(len(case.text)):
        text = case.text[:end]
        ended, cut = read(case.family, [text]), read(case.family, [text], cut=True)
        calls_of(ended)
        assert ended == read(case.family, list(text)) and cut == read(case.family, list(text), cut=True)
        assert len(ended.calls) == len(cut.calls)
        for (name, whole), (same_name, part) in zip(ended.calls, cut.calls, strict=True):
            assert name == same_name and whole.startswith(part)


PARTS = [
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", ',
    '"arguments": ',
    '"parameters": ',
    "{",
    "}",
    "[",
    "]",
    '"',
    ",",
    ":",
    "\\",
    "'",
    "\\u12",
    "\\ud83d",
    "\n",
    " ",
    "f",
    "(",
    ")",
    "a=",
    "1",
    "-",
    "true",
    "None",
    "é🦊",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
    "<|tool_call_start|>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<function=",
    "<parameter=",
    ">",
    "</parameter>",
    "</function>",
    ";",
    "get_weather",
    "city",
    "\x00",
    "\x1f",
    '{"a": 1}',
    "[f(a=",
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(NAMES), st.lists(st.sampled_from(PARTS), max_size=24), st.lists(st.integers(0, 200)), st.booleans()
)
def test_any_text_in_any_pieces(family: str, parts: list[str], cuts: list[int], cut: bool) -> None:
    text = "".join(parts)
    places = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    whole = read(family, [text], cut=cut)
    assert read(family, [text[a:b] for a, b in pairwise(places)], cut=cut) == whole
    if not cut:
        assert all(isinstance(arguments, dict) for _, arguments in calls_of(whole))
    assert all(name in {tool.name for tool in TOOLS} for name, _ in whole.calls)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NAMES), st.text(max_size=60))
def test_plain_text_is_content(family: str, text: str) -> None:
    found = read(family, [text])
    assert found.calls == [] and found.content == text


ARGUMENTS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=8,
    ),
    max_size=4,
)
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": …}\n</tool_call>',
    "llama3_json": '{"name": "f", "parameters": …}',
    "mistral": "[TOOL_CALLS]f[ARGS]…",
    "glm4": "f\n…",
}


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(WRITTEN)), ARGUMENTS, st.booleans())
def test_arguments_arrive_as_they_were_written(family: str, arguments: dict[str, object], ascii_only: bool) -> None:
    text = WRITTEN[family].replace("…", json.dumps(arguments, ensure_ascii=ascii_only))
    found = read(family, list(text))
    assert found.content == "" and calls_of(found) == [("f", arguments)]


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), ARGUMENTS.map(lambda a: a.get("x", a)), max_size=3)
)
@example({"a": {"b": "'\"\\\n"}})
def test_pythonic_reads_what_python_prints(arguments: dict[str, object]) -> None:
    """repr() of plain data, but for characters that repr() writes as \\U or that are no text."""
    text = "[f(" + ", ".join(f"{key}={value!r}" for key, value in arguments.items()) + ")]"
    if "\\U" in text or "\\ud" in text or "inf" in text:
        return
    found = read("pythonic", list(text))
    assert found.content == "" and calls_of(found) == [("f", arguments)]


EXPRESSIONS = [
    "__import__('os').system('touch /tmp/owned')",
    "open('/etc/passwd').read()",
    "().__class__.__bases__[0]",
    "1+1",
    "9**9**9",
    "lambda: 0",
    "[x for x in ().__class__.__mro__]",
    "exec('1')",
    "f'{1}'",
    "b'x'",
    "...",
    "{1, 2}",
    "-" * 5000 + "1",
    "(" * 5000,
    "[" * 5000 + "]" * 5000,
    "{'a':" * 3000,
    "1" * 6000,
    "'\\N{BULLET}'",
    "x.__doc__",
    "globals()",
    "a if b else c",
]


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda e: e[:24])
@pytest.mark.parametrize("family", NAMES)
def test_nothing_is_evaluated(family: str, expression: str) -> None:
    """T-EVAL: Python in the place of a value is text, or ends the call."""
    for text in (
        f"[f(a={expression})]",
        f'<tool_call>{{"name": "f", "arguments": {{"a": {expression}}}}}</tool_call>',
        f"<tool_call>f<arg_key>a</arg_key><arg_value>{expression}</arg_value></tool_call>",
        f"<function=get_weather><parameter=days>{expression}</parameter></function>",
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = read(family, [text])
        for _, arguments in calls_of(found):
            value = arguments.get("a", arguments.get("days"))
            assert value is None or isinstance(value, str | list | dict | int)


LONG = 3000
HOSTILE = [
    "<" * LONG,
    "<tool_call>" * LONG,
    "<tool_call>{" * LONG,
    '<tool_call>{"name": "' * LONG,
    "[TOOL_CALLS]" * LONG,
    "\n{" * LONG,
    '{"name": "f", "parameters": ' + "{" * LONG,
    "[f(" * LONG,
    "[f(a=" + "[" * LONG,
    " " * LONG + "<tool_call>",
    "<function=" * LONG,
    "<function=f><parameter=a>" + "</parameter" * LONG,
    "<tool_call>f" + "<arg_key>a</arg_key>" * LONG,
    "<tool_call>f<arg_key>a</arg_key><arg_value>" + "</arg_valu" * LONG,
    '<tool_call>{"name":"f","arguments":{"a":"' + "\\" * LONG,
    '<tool_call>{"name":"f","arguments":{"a":"' + "\\ud83d" * LONG,
    "[f(a='" + "\\x" * LONG,
    "f\n" * LONG,
    "a a" * LONG + "!",
    '<tool_call>{"name":"f","arguments":{"a":' + "1" * LONG,
    "[" + "f(a=1)," * LONG,
    "\n" * LONG,
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: t[:24])
def test_time_is_linear(text: str) -> None:
    """T-REDOS: seven parsers read each of these, 10 kB and more, in pieces of a token's size, within the test's limit;
    what takes quadratic time takes minutes."""
    for family in NAMES:
        found = read(family, [text[i : i + 7] for i in range(0, len(text), 7)])
        assert len(found.content) + sum(len(arguments) for _, arguments in found.calls) <= 12 * len(text)


def test_the_beginning_of_a_call_that_is_cut_off_is_not_shown() -> None:
    assert read("hermes", ['Hm. <tool_call>\n{"na'], cut=True).content == "Hm."
    assert read("hermes", ['Hm. <tool_call>\n{"na']).content == 'Hm. <tool_call>\n{"na'
    assert read("hermes", ["Hm. <tool_ca"], cut=True).content == "Hm. <tool_ca"
    assert read("llama3_json", ['{"name": "f", "ty'], cut=True).content == '{"name": "f", "ty'
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert read("hermes", [call + "\n<tool_"], cut=True).content == ""  # after a call there is no doubt
    assert read("hermes", [call + "\n<tool_"]).content != ""


def test_json_that_is_no_call_is_shown_at_once() -> None:
    parser = by_name("llama3_json").parser(TOOLS)
    assert parser.push('{"answer": [') and parser.push("1, 2") and parser.num_calls == 0


def test_no_more_calls_than_allowed() -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    parser = by_name("hermes").parser(TOOLS, 1)
    parser.push("x " + call[:-12])
    assert parser.complete and parser.num_calls == 1
    assert parser.push(call) == [] and parser.finish(False) == []
    assert calls_of(read("hermes", [call + call], limit=2)) == [("f", {"a": 1})] * 2
    assert calls_of(read("hermes", [call + call], limit=1)) == [("f", {"a": 1})]


def test_ids() -> None:
    ids = [event.id for event in by_name("hermes").parser(TOOLS).push('<tool_call>{"name": "f"}</tool_call>' * 3)]
    assert len(set(ids)) == 3 and all(id and id.startswith("call_") for id in ids)  # type: ignore[union-attr]
    (event,) = by_name("mistral").parser(TOOLS).push("[TOOL_CALLS]f[ARGS]{}")
    assert len(event.id) == 9 and event.id.isalnum()  # type: ignore[union-attr]


def test_families_by_name() -> None:
    names = [name for family in FAMILIES for name in (family.name, *family.aliases)]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        assert all(by_name(name) is family for name in (family.name, *family.aliases))
    with pytest.raises(ConfigError, match=r"'nonesuch' is not known.*hermes.*mistral"):
        by_name("nonesuch")


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("{{ tools }} <tool_call>{'name':…}</tool_call>", "hermes"),
        ("within <tool_call></tool_call> … <function=a><parameter=b>", "qwen3_coder"),
        ("<tool_call>{{ name }}<arg_key>{{ k }}</arg_key>", "glm45"),
        ("[gMASK]<sop> … <|observation|>", "glm4"),
        ('Respond in the format {"name": function name, "parameters": dictionary} … "parameters": ', "llama3_json"),
        ('{"name": "x", "parameters": …} <tool_call>', "hermes"),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS][{{ … }}]", "mistral"),
        ("[TOOL_CALLS]{{ name }}[ARGS]{{ args }}", "mistral_args"),
        ("put it in the format of [func_name1(params_name1=params_value1)]", "pythonic"),
        ("<|tool_call_start|>[…]<|tool_call_end|>", "pythonic"),
        ("{{ messages }}", "hermes"),
    ],
)
def test_families_by_template(template: str, family: str) -> None:
    assert of_template(template).name == family
