"""Grammars of answers that call tools: what they let through is read back as calls that the schemas accept."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from grammar_walks import accepts, matcher, walk
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_schemas import schemas
from tiny_text import byte_level
from toolcall_cases import collected

from octavo.errors import RequestError
from octavo.grammar.tools import MAX_CALLS, calls_grammar, enforceable, with_reasoning
from octavo.grammar.wellformed import check_parameters
from octavo.text.toolcalls.family import Family
from octavo.text.toolcalls.registry import FAMILIES, by_name
from octavo.text.toolcalls.tool import Tool

TOKENIZER = byte_level()
HERMES = by_name("hermes")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
STRICT = Tool(name="f", parameters=SCHEMA, strict=True)
FREE = Tool(name="ns.other", parameters=SCHEMA)
BOTH = [(0, STRICT), (1, FREE)]
ENFORCED = [family for family in FAMILIES if family.form.arguments is None]
EACH = pytest.mark.parametrize("family", ENFORCED, ids=lambda family: family.name)


def grammar(family: Family, tools: list[tuple[int, Tool]] = BOTH, **how: Any) -> str:
    return calls_grammar(family.form, tools, TOKENIZER, **how)


def written(family: Family, *calls: tuple[str, str], after_trigger: bool = False) -> str:
    form = family.form
    each = [form.before + name + form.between + arguments + form.after for name, arguments in calls]
    return form.start + (form.separator or "").join(each) + form.end


def read(family: Family, text: str) -> list[tuple[str, Any]]:
    parser = family.parser([STRICT, FREE])
    found = collected(text, [*parser.push(text), *parser.finish(False)])
    return [(name, json.loads(arguments)) for name, arguments in found.calls]


@EACH
def test_required_is_calls_and_nothing_else(family: Family) -> None:
    required = grammar(family, required=True)
    one, two = written(family, ("f", '{"a": 1}')), written(family, ("f", '{"a":1,"b":"x"}'), ("ns.other", '{"a": 2}'))
    assert accepts(required, one) and accepts(required, two)
    assert read(family, one) == [("f", {"a": 1})]
    assert read(family, two) == [("f", {"a": 1, "b": "x"}), ("ns.other", {"a": 2})]
    for name, arguments in (("f", '{"a": "1"}'), ("f", "{}"), ("g", '{"a": 1}'), ("ns.other", '{"a": 1.5}')):
        assert not accepts(required, written(family, (name, arguments)))
    assert not accepts(required, "") and not accepts(required, "Hello") and not accepts(required, "Hi. " + one)
    single = grammar(family, required=True, max_calls=1)
    assert accepts(single, one) and not accepts(single, two)
    assert not accepts(required, written(family, *[("f", '{"a": 1}')] * (MAX_CALLS + 1)))


@EACH
def test_auto_is_text_until_a_call_begins(family: Family) -> None:
    auto, one_only = grammar(family), grammar(family, max_calls=1)
    one, two = written(family, ("f", '{"a": 1}')), written(family, ("f", '{"a": 1}'), ("ns.other", '{"z": [1]}'))
    for allowed in (auto, one_only):
        assert (
            accepts(allowed, "")
            and accepts(allowed, "Hello, world.\n\n  Yes: a < b, [1], (2)")
            and accepts(allowed, one)
        )
        assert not accepts(allowed, written(family, ("f", '{"a": "1"}')))
        assert not accepts(allowed, written(family, ("g", "{}")))
    assert accepts(auto, two) and read(family, two)[1] == ("ns.other", {"z": [1]})
    assert not accepts(one_only, two)
    if family.form.trigger is not None:
        assert accepts(auto, "Let me see. " + one) and not accepts(auto, "Let me see. " + family.form.trigger + "!")


@EACH
def test_content_that_is_bound_too(family: Family) -> None:
    bound = grammar(family, content='start: %json {"type": "array", "items": {"type": "integer"}}\n')
    assert accepts(bound, "[1, 2]") and accepts(bound, written(family, ("f", '{"a": 1}')))
    assert not accepts(bound, "Hello") and not accepts(bound, '["a"]')


OBJECTS = st.builds(
    lambda properties, required: {"type": "object", "properties": properties, "required": required[: len(properties)]},
    st.dictionaries(st.sampled_from(["a", "b", "city"]), schemas(), min_size=1, max_size=3),
    st.just([]) | st.just(["a"]),
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(ENFORCED), OBJECTS, st.integers(0, 2**32))
def test_any_schema_any_walk(family: Family, schema: dict[str, Any], seed: int) -> None:
    tool = Tool(name="f", parameters=schema)
    try:
        required = grammar(family, [(0, tool)], required=True, max_calls=2)
    except RequestError as error:
        assert error.param == "tools[0].function.parameters"
        return
    if matcher(required).is_error():
        return  # no value matches, or it is too large: the checker says so
    text = walk(required, random.Random(seed), steps=40)
    assume(text is not None)
    assert text is not None
    calls = read(family, text)
    assert calls and all(name == "f" for name, _ in calls)
    for _, arguments in calls:
        jsonschema.validate(arguments, schema, jsonschema.Draft202012Validator)


ONE_BY_ONE = [family for family in FAMILIES if family.form.arguments is not None]
WRITTEN = {
    "pythonic": ("[f(a=1)]", '[f(a=1, b="x", c="it\'s", d=[1, null])]', '[f(a="1")]', "[f()]", "[f(a=1, f(a=1)]"),
    "glm45": (
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n<arg_value>x</arg_value>\n"
        "<arg_key>c</arg_key>\n<arg_value>it's</arg_value>\n<arg_key>d</arg_key>\n<arg_value>[1, null]</arg_value>"
        "\n</tool_call>",
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>one</arg_value>\n</tool_call>",
        "<tool_call>f\n</tool_call>",
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>z</arg_key>",
    ),
    "qwen3_coder": (
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx\n</parameter>\n<parameter=c>\nit's\n"
        "</parameter>\n<parameter=d>\n[1, null]\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=a>\none\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=z>",
    ),
}
MANY: dict[str, Any] = {
    "type": "object",
    "properties": {**SCHEMA["properties"], "c": {"type": "string"}, "d": {"type": "array"}},
    "required": ["a"],
}


@pytest.mark.parametrize("family", ONE_BY_ONE, ids=lambda family: family.name)
def test_arguments_one_by_one(family: Family) -> None:
    tool = Tool(name="f", parameters=MANY, strict=True)
    required, auto = grammar(family, [(0, tool)], required=True), grammar(family, [(0, tool)])
    few, all_, *wrong = WRITTEN[family.name]
    for allowed in (required, auto):
        assert accepts(allowed, few) and accepts(allowed, all_)
        assert not any(accepts(allowed, text) for text in wrong)
    assert accepts(auto, "Just words.") and not accepts(required, "Just words.")
    parser = family.parser([tool])
    found = collected(all_, [*parser.push(all_), *parser.finish(False)])
    assert json.loads(found.calls[0][1]) == {"a": 1, "b": "x", "c": "it's", "d": [1, None]}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(ONE_BY_ONE), OBJECTS, st.integers(0, 2**32))
def test_any_schema_one_by_one(family: Family, schema: dict[str, Any], seed: int) -> None:
    tool = Tool(name="f", parameters=schema)
    family = enforceable(family, [tool])
    try:
        required = grammar(family, [(0, tool)], required=True, max_calls=2)
    except RequestError:
        return
    if matcher(required).is_error():
        return
    text = walk(required, random.Random(seed), steps=40)
    assume(text is not None)
    assert text is not None
    parser = family.parser([tool])
    calls = collected(text, [*parser.push(text), *parser.finish(False)]).calls
    assert calls
    for _, arguments in calls:
        jsonschema.validate(json.loads(arguments), schema, jsonschema.Draft202012Validator)


def test_reasoning_in_front() -> None:
    tags = ("<think>", "</think>")
    calls = grammar(HERMES, required=True)
    one = written(HERMES, ("f", '{"a": 1}'))
    opened = with_reasoning(calls, tags, TOKENIZER, opened=True, budget=None)
    assert accepts(opened, "Hm, <tool_call>?\n</think>\n\n" + one) and not accepts(opened, one)
    free = with_reasoning(calls, tags, TOKENIZER, opened=False, budget=None)
    assert accepts(free, "<think>Hm</think>" + one) and accepts(free, one) and not accepts(free, "<think>Hm</think>Hi")
    assert accepts(with_reasoning(None, tags, TOKENIZER, opened=True, budget=None), "a</think>b")


def test_well_formed() -> None:
    for schema in ({}, SCHEMA, {"foo": "bar"}, {"properties": {"a": True, "b": {"type": ["string", "null"]}}},
                   {"type": "object", "properties": {"a": {"not": {"minimum": 3}, "required": True}}}):  # fmt: skip
        check_parameters(schema, "p")
    wrong: list[tuple[Any, str]] = [
        ({"type": "string"}, "type"), ({"type": None}, "type"), ({"properties": []}, "properties"),
        ({"properties": {"a": 1}}, "schema"), ({"properties": {"a": {"type": "any"}}}, "type at /properties/a"),
        ({"properties": {"a": {"type": []}}}, "type"), ({"required": "a"}, "required"), ({"anyOf": {}}, "anyOf"),
        ({"anyOf": []}, "anyOf"), ({"properties": {"a": {"enum": "x"}}}, "enum"), ({"minItems": -1}, "minItems"),
        ({"properties": {"a": {"minimum": "1"}}}, "minimum"), ({"$ref": 1}, r"\$ref"), ({"items": 3}, "schema"),
        ({"properties": {"a": {"pattern": 5}}}, "pattern"), ({"$defs": {"x": "y"}}, r"schema at /\$defs/x"),
    ]  # fmt: skip
    for schema, keyword in wrong:
        with pytest.raises(RequestError, match=f"p: {keyword}"):
            check_parameters(schema, "p")


@EACH
def test_strict_tools_are_closed(family: Family) -> None:
    is_open = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for strict in (True, False):
        bound = grammar(family, [(0, Tool(name="f", parameters=is_open, strict=strict))], required=True)
        assert accepts(bound, written(family, ("f", '{"a": 1}')))
        assert accepts(bound, written(family, ("f", '{"b": 1}'))) is not strict
