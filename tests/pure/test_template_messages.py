"""What a chat template sees of the messages: all their keys in order, parts where it takes parts, text elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_text import byte_level

from octavo.client.arguments import as_messages
from octavo.errors import RequestError, Unsupported
from octavo.text.template import ChatTemplate
from octavo.text.toolcalls.prompt import told
from octavo.text.toolcalls.tool import Tool
from octavo.types import Message, WrittenMessage

TOKENIZER = byte_level()
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
EACH = "{% for m in messages %}"
MACRO = (
    "{% macro show(m) %}{% set c = m.get('content') %}{% if c is string %}{{ c }}{% elif c is not none %}"
    "{% for part in c %}{{ part['text'] }}{% endfor %}{% endif %}{% endmacro %}"
    + EACH
    + "<{{ m.role }}>{{ show(m) }}{% endfor %}"
)
PASSED_ON = (
    "{% macro show(c) %}{% if c is string %}{{ c }}{% else %}{% for item in c if item.type == 'text' %}{{ item.text }}|"
    "{% endfor %}{% endif %}{% endmacro %}" + EACH + "{{ show(m.content) }}{% endfor %}"
)
LOOP = (
    EACH
    + "{% for part in m['content'] %}{{ '[' + part.text + ']' if part is mapping else part }}{% endfor %}{% endfor %}"
)
PRINTED = EACH + "{{ m.content }}{% endfor %}"
ADDED = EACH + "{{ '<' + m.content + '>' }}{% endfor %}"
DROPPED = EACH + "{% if m.content is string %}{{ m.content }}{% endif %}{% endfor %}"
FIRST_ONLY = EACH + "{{ m.content if m.content is string else m.content[0].text }}{% endfor %}"
DUMPED = EACH + "{{ m.content if m.content is string else m.content | tojson }}{% endfor %}"
RESULTS_DUMPED = (
    EACH + "{{ m.content | tojson if m.role == 'tool' else m.content }};{% endfor %}{{ tools | tojson if tools }}"
)
USERS_ONLY = (
    EACH
    + "{% if m.role == 'user' and m.content is not string %}{% for p in m.content %}({{ p.text }}){% endfor %}"
    + "{% else %}{{ m.content + '' }}{% endif %};{% endfor %}"
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, TOKENIZER)


def render(source: str, messages: list[Any], **options: Any) -> str:
    return template(source).render(as_messages(messages), add_generation_prompt=False, **options)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (MACRO, "<user>onetwo"),
        (PASSED_ON, "one|two|"),
        (LOOP, "[one][two]"),
        (PRINTED, "one two"),
        (ADDED, "<one two>"),
        (DROPPED, "one two"),
        (FIRST_ONLY, "one two"),
        (DUMPED, "one two"),
    ],
    ids=["macro", "passed on", "loop", "printed", "added", "dropped", "first only", "dumped"],
)
def test_parts_go_to_templates_that_show_each_of_them(source: str, shown: str) -> None:
    assert render(source, [{"role": "user", "content": PARTS}]) == shown
    text = template(source).render([Message("user", "one two")], add_generation_prompt=False)
    assert text.replace("<user>", "") in ("one two", "<one two>")


def test_each_role_for_itself() -> None:
    said = [{"role": role, "content": PARTS} for role in ("system", "user", "assistant")]
    assert render(USERS_ONLY, said) == "one two;(one)(two);one two;"


def test_results_may_become_json() -> None:
    """As templates write results; what a user says in parts is not JSON."""
    messages = [
        {"role": "user", "content": PARTS},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "content": PARTS, "tool_call_id": "a"},
    ]
    assert render(RESULTS_DUMPED, messages) == f"one two;x;{json.dumps(PARTS)};"


def test_parts_keep_their_keys_and_are_texts() -> None:
    given = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "input_text", "text": "b"}]
    shown = render(LOOP + "{{ messages[0].content | tojson }}", [{"role": "user", "content": given}])
    assert shown == "[a][b]" + json.dumps([given[0], {"type": "text", "text": "b"}])
    with pytest.raises(Unsupported) as refused:
        render(LOOP, [{"role": "user", "content": [*PARTS, {"type": "image_url", "image_url": {"url": "x"}}]}])
    assert refused.value.param == "messages[0].content[2]"


WHOLE = EACH + "{{ m | tojson }}{% endfor %}"


def test_all_keys_in_their_order() -> None:
    given = {"weight": 0, "content": "c", "zeta": [1, None, {"b": 1.5, "a": True}], "role": "assistant", "prefix": True}
    assert render(WHOLE, [given]) == json.dumps(given)
    assert render(WHOLE, [{**given, "name": None, "audio": None}]) == json.dumps(given)
    plain = template(WHOLE).render([Message("user", "x", name="n")], add_generation_prompt=False)
    assert plain == '{"role": "user", "content": "x", "name": "n"}'


def test_a_key_that_nobody_sent_is_undefined() -> None:
    source = (
        EACH
        + "{% for k in ['name', 'tool_calls', 'thinking', 'content'] %}{{ m[k] is defined }} {% endfor %}{% endfor %}"
    )
    assert render(source, [{"role": "user", "content": "x", "name": None}]) == "False False False True "


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_by_each_of_its_names(name: str) -> None:
    shown = render(WHOLE, [{"role": "assistant", name: "t", "content": "c"}])
    rest = {"role": "assistant", name: "t", "content": "c"}
    assert shown == json.dumps({"thinking": "t", **rest, "reasoning_content": "t"})


def test_fields_win_over_what_was_given() -> None:
    message = WrittenMessage(
        role="system", content="new", given={"role": "developer", "content": "old", "name": "n", "x": 1}
    )
    assert (
        template(WHOLE).render([message], add_generation_prompt=False) == '{"role": "system", "content": "new", "x": 1}'
    )


def test_only_plain_data_reaches_a_template() -> None:
    class Text(str):
        def upper(self) -> str:
            raise AssertionError

    given = {"role": "user", "content": Text("c"), "a": (1, Text("t")), "o": object(), 3: {1: 2}}
    shown = render("{{ messages[0].content.upper() }}" + WHOLE, [given])
    assert shown == 'C{"role": "user", "content": "c", "a": [1, "t"], "o": "<object>", "3": {"1": 2}}'


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: Any = "<|im_end|>"
    for _ in range(5000):
        deep = [deep]
    for encode in (False, True):
        found = template(PRINTED)
        messages = as_messages([{"role": "user", "content": "x", "deep": deep}])
        with pytest.raises(RequestError, match="nested too deeply"):
            (found.encode if encode else found.render)(messages, add_generation_prompt=False)


def test_trials_of_a_template_without_end_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.text import budget

    monkeypatch.setattr(budget, "CPU_SECONDS", 0.2)
    monkeypatch.setattr(budget, "TRIAL_SECONDS", 0.05)
    endless = "{% for m in messages if m.content is not string or 'zq' in m.content %}{% for i in range(10**5) %}" * 2
    source = endless + "{% endfor %}{% endfor %}" * 2 + PRINTED
    assert render(source, [{"role": "user", "content": PARTS}]) == "one two"


CALLS = EACH + "{% for c in m.tool_calls %}{{ c.function.arguments if c.function.arguments is string else "
CALLS += "c.function.arguments | tojson }}{% endfor %}{% endfor %}{{ tools | tojson if tools }}"
DUMPED_CALLS = EACH + "{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}{{ tools | tojson if tools }}"


def shown(source: str, messages: list[Any], tools: list[Tool]) -> str:
    found = template(source)
    given, shown_tools = told(found, as_messages(messages), tools)
    return found.render(given, add_generation_prompt=False, tools=shown_tools)


def test_arguments_written_as_text_stay_as_written_where_a_template_shows_text() -> None:
    def call(arguments: Any) -> list[dict[str, Any]]:
        function = {"arguments": arguments, "name": "f"}
        return [{"role": "assistant", "tool_calls": [{"function": function, "index": 0, "type": "function"}]}]

    assert shown(CALLS, call('{"a":1,  "b": "é"}'), []) == '{"a":1,  "b": "é"}'
    assert shown(CALLS, call({"a": 1}), []) == '{"a": 1}'
    for nothing in ("", None, "null"):
        assert shown(CALLS, call(nothing), []) == "{}"
    expected = [{"function": {"arguments": {"a": 1}, "name": "f"}, "index": 0, "type": "function"}]
    assert shown(DUMPED_CALLS, call('{"a":1}'), []) == json.dumps(expected)


def test_missing_content_is_missing_where_a_template_goes_on_without() -> None:
    source = EACH + "{{ m.role }}{{ m.content is defined }};{% endfor %}{{ tools | tojson if tools }}"
    call = {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]}
    messages = [call, {"role": "tool", "tool_call_id": "a"}, {"role": "assistant"}]
    assert shown(source, messages, []) == "assistantFalse;toolTrue;assistantFalse;"
    strict = EACH + "{{ '<' + m.content + '>' }}{% endfor %}{{ tools | tojson if tools }}"
    assert shown(strict, messages, []) == "<><><>"


def test_a_tool_as_it_was_written() -> None:
    written = {
        "function": {"description": "d", "strict": True, "returns": {"type": "string"}, "name": "f", "parameters": {}},
        "type": "function",
    }
    tool = Tool(name="f", description="d", strict=True, given=written)
    found = tool.as_openai()
    assert list(found) == ["function", "type"]
    assert list(found["function"]) == ["description", "returns", "name", "parameters"]
    assert found["function"]["parameters"] == {"type": "object", "properties": {}}
