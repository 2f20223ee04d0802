"""octavo/grammar: what a schema, regex, choice or GBNF refuses never gets through, what it accepts does; what cannot
be enforced is an error that names the field, the keyword and the place."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from grammar_walks import CLOSE_THINK, EOS, accepts, matcher, texts
from schema_cases import CASES

from octavo.errors import RequestError
from octavo.grammar.patterns import searched
from octavo.grammar.regexes import RegexError
from octavo.grammar.spec import after_reasoning, choice_expr, grammar_of, json_expr, literal, regex_expr
from octavo.types import StructuredOutputs


def json_grammar(schema: Any, **more: Any) -> str:
    return grammar_of(StructuredOutputs(json=schema, **more))


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 150


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=[json.dumps(c[0])[:60] for c in CASES])
def test_schemas(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    grammar = json_grammar(schema)
    for value in valid:
        assert any(accepts(grammar, text) for text in texts(value)), value
    for value in invalid:
        wrong = [text for text in texts(value) if accepts(grammar, text)]
        assert not wrong, wrong


REFUSED = [
    ({"not": {"pattern": "a"}}, "not"),
    ({"not": {"$id": "x", "type": "null"}}, "not"),
    ({"if": {"format": "date"}, "then": {"maxLength": 3}}, "if"),
    ({"contains": {"type": "null"}, "minContains": 2, "maxContains": 1}, "contains"),
    ({"contains": {"multipleOf": 2}, "maxContains": 1}, "maxContains"),
    ({"items": {"enum": [1, 2, 3, 4, 5, 6, 7]}, "uniqueItems": True}, "uniqueItems"),
    ({"uniqueItems": True}, "uniqueItems"),
    ({"$dynamicRef": "#x"}, "$dynamicRef"),
    ({"allOf": [{"properties": {}}], "unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"anyOf": [{}], "unevaluatedItems": False}, "unevaluatedItems"),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
    ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, "oneOf"),
    ({"oneOf": [{}, {"type": "null"}]}, "oneOf"),
    ({"multipleOf": 0.01}, "multipleOf"),
    ({"multipleOf": 0}, "multipleOf"),
    ({"minimum": 2**60}, "minimum"),
    ({"const": 2**53 + 1}, "const"),
    ({"enum": [0.1234567890123456789]}, "enum"),
    ({"const": "\x00"}, "const"),
    ({"properties": {"\ud800": {}}}, "properties"),
    ({"pattern": r"(?!a)b"}, "pattern"),
    ({"pattern": r"(a)\1"}, "pattern"),
    ({"pattern": r"\bfoo"}, "pattern"),
    ({"pattern": r"\p{L}"}, "pattern"),
    ({"pattern": "("}, "pattern"),
    ({"pattern": "a{2,1}"}, "pattern"),
    ({"pattern": "a{1,1000000000}"}, "pattern"),
    ({"pattern": "(" * 5000 + ")" * 5000}, "pattern"),
    ({"$ref": "http://example.com/schema"}, "$ref"),
    ({"$ref": "#/$defs/none"}, "$ref"),
    ({"$ref": "#none"}, "$ref"),
    ({"$ref": "#"}, "$ref"),
    ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "$ref"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "schema"),
    ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "schema"),
    (False, "schema"),
    ({"minProperties": 2}, "minProperties"),
    ({"properties": {"a": True}, "maxProperties": 1}, "maxProperties"),
    ({"disallow": "string"}, "disallow"),
    ({"properties": {"a": {"required": True}}}, "required"),
    ({"propertyNames": {"pattern": "a", "minLength": 1}}, "propertyNames"),
    ({"minLength": 10**9}, "minLength"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "keyword"), REFUSED, ids=[json.dumps(c[0])[:50] for c in REFUSED])
def test_what_cannot_be_enforced_is_refused_by_name(schema: Any, keyword: str) -> None:
    nested = {"type": "array", "items": schema} if not isinstance(schema, dict) or "$ref" not in str(schema) else schema
    for one in (schema, nested):
        if schema is False and one is not schema:
            continue
        with pytest.raises(RequestError) as refused:
            grammar_of(StructuredOutputs(json=one), "the_field")
        assert refused.value.param == "the_field"
        assert refused.value.message.startswith(f"the_field: {keyword}"), refused.value.message


def test_an_unknown_format_is_an_annotation() -> None:
    grammar = json_grammar({"type": "string", "format": "color", "maxLength": 3})
    assert accepts(grammar, '"red"') and not accepts(grammar, '"green"')
    assert not accepts(json_grammar({"type": "string", "format": "date"}), '"red"')


P, Q = {"properties": {"p": {"type": "integer"}}}, {"properties": {"q": {"type": "integer"}}}
NESTED = {"properties": {"o": {"type": "object", **P}}, "type": "object"}
CLOSED = [
    ({"type": "object", **P}, ['{"p":1}', "{}"], ['{"x":1}', '{"p":1,"x":1}']),
    (NESTED, ['{"o":{"p":1}}'], ['{"o":{"x":1}}', '{"x":1}']),
    ({"type": "object", "items": P}, ['{"x":1}'], []),
    ({"type": "array", "items": {"type": "object", **P}}, ['[{"p":1}]'], ['[{"x":1}]']),
    ({"type": "object", "additionalProperties": {"type": "integer"}, **P}, ['{"x":1}'], ['{"x":"a"}']),
    ({"anyOf": [{"type": "object", **P}, {"type": "object", **Q}]}, ['{"p":1}', '{"q":1}'], ['{"x":1}']),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", **P}}}, ['{"p":1}'], ['{"x":1}']),
    ({"type": "object", "anyOf": [{"required": ["p"]}, {"required": ["q"]}],
      "properties": {**P["properties"], **Q["properties"]}}, ['{"p":1}', '{"q":1}'], ['{"p":1,"x":1}']),
    # Several schemas name the properties together: none of them knows all.
    ({"type": "object", "allOf": [P, Q], "required": ["p", "q"]}, ['{"p":1,"q":1}'], []),
    ({"type": "object", **P, "anyOf": [{**Q, "required": ["q"]}]}, ['{"p":1,"q":1}'], []),
    ({"type": "object", **P, "not": {"required": ["p", "x"], "type": "object"}}, ["{}"], []),
    ({"type": "object", **P, "dependentSchemas": {"p": {**Q, "required": ["q"]}}}, ['{"p":1,"q":1}'], []),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), CLOSED, ids=[json.dumps(c[0])[:60] for c in CLOSED])
def test_closed_objects_have_the_named_properties_alone(schema: Any, valid: list[str], invalid: list[str]) -> None:
    closed = grammar_of(StructuredOutputs(json=schema, disable_additional_properties=True))
    given = json_grammar(schema)
    for text in valid:
        assert accepts(closed, text), text
    for text in invalid:
        assert not accepts(closed, text), text
        assert accepts(given, text) or "additionalProperties" in str(schema), text


def test_the_place_is_named() -> None:
    with pytest.raises(RequestError, match=re.escape("at /properties/a~1b/anyOf/1")):
        json_grammar({"properties": {"a/b": {"anyOf": [{}, {"not": {"multipleOf": 2}}]}}})


KEYWORDS = [
    "type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
    "maxLength", "pattern", "format", "items", "prefixItems", "minItems", "maxItems", "properties", "required",
    "patternProperties", "additionalProperties", "minProperties", "maxProperties", "propertyNames", "dependentRequired",
    "dependentSchemas", "dependencies", "anyOf", "allOf", "oneOf", "$ref",
]  # fmt: skip
WRONG = [17, 1.5, "x", None, [1], {"a": 7}, [None], {"a": {"type": 3}}, -1, [{"type": "foo"}], "("]
_RIGHT = {
    ("minimum", 17), ("minimum", 1.5), ("minimum", -1), ("maximum", 17), ("maximum", 1.5), ("maximum", -1),
    ("exclusiveMinimum", 17), ("exclusiveMinimum", 1.5), ("exclusiveMinimum", -1), ("exclusiveMaximum", 17),
    ("exclusiveMaximum", 1.5), ("exclusiveMaximum", -1), ("multipleOf", 17), ("multipleOf", 1.5), ("minLength", 17),
    ("maxLength", 17), ("minItems", 17), ("maxItems", 17), ("maxProperties", 17), ("pattern", "x"),
    ("format", "x"), ("format", "("),
}  # fmt: skip


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_keywords_of_a_wrong_type(keyword: str) -> None:
    """T-BADGRAM."""
    for value in WRONG:
        if keyword == "enum" and isinstance(value, list):
            continue  # any list of values will do
        if keyword in ("items", "additionalProperties", "propertyNames") and value in ({"a": 7}, {"a": {"type": 3}}):
            continue  # schemas with a keyword that nobody knows
        if not isinstance(value, list | dict) and (keyword, value) in _RIGHT:
            continue
        with pytest.raises(RequestError) as refused:
            json_grammar({keyword: value})
        assert refused.value.param == "structured_outputs", (keyword, value)
        assert keyword in refused.value.message or "type" in refused.value.message, refused.value.message


@pytest.mark.parametrize("value", [3, "x", None, [], 1.5])
def test_schemas_that_are_none(value: Any) -> None:
    with pytest.raises(RequestError):
        json_grammar({"properties": {"a": value}})
    with pytest.raises(RequestError):
        json_grammar({"items": {"anyOf": [value]}})


def test_a_schema_may_come_as_text() -> None:
    assert accepts(json_grammar('{"type": "integer"}'), "12")
    for text in ("", "{", '{"a": 1, "a": 2}', "[" * 100_000, "nope", '{"type": NaN}', "[]", '"x"', "3", "null"):
        with pytest.raises(RequestError) as refused:
            json_grammar(text)
        assert refused.value.param == "structured_outputs"


def test_deep_schemas() -> None:
    """T-DEEP."""
    schema: dict[str, Any] = {}
    for _ in range(5_000):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="levels"):
        json_grammar(schema)
    value: Any = 1
    for _ in range(5_000):
        value = [value]
    with pytest.raises(RequestError, match="nested"):
        json_grammar({"const": value})


def test_large_schemas() -> None:
    many = {"properties": {f"p{i}": {} for i in range(30_000)}}
    with pytest.raises(RequestError, match="schemas"):
        json_grammar(many)
    with pytest.raises(RequestError, match="bytes"):
        json_grammar({"enum": ["x" * 600_000, "y" * 600_000]})


def test_a_name_has_one_spelling() -> None:
    grammar = json_grammar({"type": "object", "properties": {"a": {"type": "integer"}}})
    assert accepts(grammar, '{"a":1,"b":"x"}')
    for text in ('{"a":1,"\\u0061":"x"}', '{"b":"x","a":1}', '{"a":1,"a":"x"}', '{"b":1,"\\u0061":"x"}'):
        assert not accepts(grammar, text)


def test_blanks() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array"}}}
    assert accepts(json_grammar(schema), '{\n    "a": [\n        1, 2\n    ]\n}')
    assert not accepts(json_grammar(schema), '{\n\n\n"a": []}')
    tight = json_grammar(schema, disable_any_whitespace=True)
    assert accepts(tight, '{"a":[1,2]}') and not accepts(tight, '{"a": [1]}')
    own = json_grammar(schema, whitespace_pattern=r"[ \n]{0,2}")
    assert accepts(own, '{ "a":  [1]}') and not accepts(own, '{\t"a": [1]}') and not accepts(own, '{   "a": [1]}')
    for pattern in ("a*", r"\s", "(", "x"):
        with pytest.raises(RequestError, match="whitespace_pattern"):
            json_grammar(schema, whitespace_pattern=pattern)


def test_closed_objects() -> None:
    grammar = json_grammar({"type": "object", "properties": {"a": True}}, disable_additional_properties=True)
    assert accepts(grammar, '{"a": 1}') and not accepts(grammar, '{"b": 1}')


def test_exactly_one_kind() -> None:
    for structured in (
        StructuredOutputs(),
        StructuredOutputs(regex="a", choice=["a"]),
        StructuredOutputs(json={}, json_object=True),
        StructuredOutputs(json_object=False),
        StructuredOutputs(structural_tag={"x": 1}),
        StructuredOutputs(choice=[]),
        StructuredOutputs(choice=[""]),
        StructuredOutputs(grammar=" \n"),
        StructuredOutputs(regex="("),
    ):
        with pytest.raises(RequestError) as refused:
            grammar_of(structured, "f")
        assert refused.value.param == "f"


def test_json_object() -> None:
    grammar = grammar_of(StructuredOutputs(json_object=True))
    assert accepts(grammar, '{"a": [1, {"b": null}]}')
    assert not accepts(grammar, "[]") and not accepts(grammar, '"a"')


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (r"\d{3}-\w+", ["123-a_Z"], ["12-a", "123-", "123-é", "x123-a", "123-a ", "٣٣٣-a"]),
        (r"^(yes|no)$", ["yes", "no"], ["yesno", "", "yes\n"]),
        (r"a/b", ["a/b"], ["a"]),
        (r"(a+)+b", ["ab", "aaab"], ["a" * 40, "b"]),
        (r"(a*)*", ["", "aaa"], ["b"]),
        (r"[^\s]{2}", ["ab", "é🦊"], ["a ", "a"]),
        (r"\"\\", ['"\\'], ["\\"]),
        ("é🦊", ["é🦊"], ["é"]),
        ("", [""], ["a"]),
    ],
)
def test_regexes(pattern: str, matching: list[str], others: list[str]) -> None:
    grammar = grammar_of(StructuredOutputs(regex=pattern))
    for text in matching:
        assert accepts(grammar, text) and re.fullmatch(pattern, text)
    for text in others:
        assert not accepts(grammar, text)


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "a**", "*a", "[", "[]", "[^]", "[b-a]", "a{3,1}", "a{1,1000000000}", r"\1", r"\b", r"\p{L}", "(?i)a",
     "(?!a)", "(?<=a)b", "(?<!a)b", "a^b", "(?=a)+", "^*", "a{,3}", r"\cA", r"\x1", r"\uD800", r"\Z", "x(?=y)",
     "(" * 200 + ")" * 200, "a" * 70_000],
)  # fmt: skip
def test_regexes_that_are_refused(pattern: str) -> None:
    with pytest.raises(RegexError):
        searched(pattern)
    with pytest.raises(RequestError):
        grammar_of(StructuredOutputs(regex=pattern))


def test_choices() -> None:
    choices = ["a", "a", "ab", 'q"\\/', "é🦊", "new\nline", "\x7f\x01", "<|end|>", "<[1]>"]
    grammar = grammar_of(StructuredOutputs(choice=choices))
    for text in choices:
        assert accepts(grammar, text)
    assert not accepts(grammar, "b") and not accepts(grammar, "aab")


GBNF = {
    'root ::= "yes" | "no"': (["yes", "no"], ["yesno", ""]),
    "root ::= [0-9]+ ws\nws ::= [ \\t\\n]*": (["12", "1 \n"], ["", "a"]),
    'root ::= e\ne ::= t (("+" | "-") t)*\nt ::= [0-9]+ | "(" e ")"': (["1+2", "(1-(2+3))"], ["1+", "(1", "()"]),
    'root ::= (\n  "a" |\n  "b" # comment "\n)+ "c"?': (["ab", "bc", "aaac"], ["c", "", "cc"]),
    'root ::= "a"\n  | "b"\n': (["a", "b"], ["ab"]),
    'root ::= [^"\\\\\\x00-\\x1f]{2,3}': (["ab", "éé🦊"], ["a", 'a"', "a\n", "abcd"]),
    'root ::= "\\u00e9\\x41\\U0001F98A\\"\\n"': (['éA🦊"\n'], ["é"]),
    "root ::= . . x-1\nx-1 ::= [a-z]{2}": (["\n🦊ab"], ["ab", "abc"]),
    'root ::= A-b A_b\nA-b ::= "1"\nA_b ::= "2"': (["12"], ["11", "22"]),
    'root ::= "" | "x" root': (["", "xxx"], ["y"]),
    'root ::= root "a" | "b"': (["b", "baa"], ["a", "ab"]),
    'root ::= "[" (v ("," v)*)? "]"\nv ::= root | "1"': (["[]", "[1,[1]]"], ["[1,]", "["]),
}


@pytest.mark.parametrize("text", GBNF, ids=[text[:40] for text in GBNF])
def test_gbnf(text: str) -> None:
    grammar = grammar_of(StructuredOutputs(grammar=text))
    matching, others = GBNF[text]
    for one in matching:
        assert accepts(grammar, one), one
    for one in others:
        assert not accepts(grammar, one), one


@pytest.mark.parametrize(
    "text",
    ['x ::= "a"', 'root ::= "a', "root ::= [a", 'root ::= ("a"', "root ::= y", "root ::= ", 'root ::= "a" root',
     "root ::= root", "root ::= a\na ::= root", 'root ::= "a"\nroot ::= "b"', "root ::= [z-a]", 'root ::= "\\q"',
     'root ::= "a"{1,1000000000}', 'root ::= "a"{3,1}', "root ::= " + "(" * 20_000, 'root ::= "a" ! "b"',
     "root ::= 'a'", 'root ::= "a"' + "*" * 1000, 'root ::= "\\uD800"', "root ::= []", 'root ::= "a"\nfoo bar'],
)  # fmt: skip
def test_gbnf_that_is_wrong(text: str) -> None:
    if text == "root ::= ":  # nothing at all is a text, too
        assert accepts(grammar_of(StructuredOutputs(grammar=text)), "")
        return
    with pytest.raises(RequestError) as refused:
        grammar_of(StructuredOutputs(grammar=text), "grammar")
    assert refused.value.param == "grammar"


def test_a_long_chain_of_rules_takes_no_time() -> None:
    chain = "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(5_000)) + 'r5000 ::= "a"\n'
    assert "start" in grammar_of(StructuredOutputs(grammar=chain))


def test_lark() -> None:
    text = 'start: "a" %json {"type": "object", "additionalProperties": false} /[#"%]json/ // %json {\n# "x\n'
    grammar = grammar_of(StructuredOutputs(grammar=text))
    assert accepts(grammar, "a{}#json") and not accepts(grammar, 'a{"x":1}#json')
    for wrong in (
        'start: %json {"uniqueItems": true}', "start: %json {",
        'start: %json {"x-guidance": {"lenient": true}, "uniqueItems": true}',
        'start: x\nx[stop="a"]: /.*/', 'start: x\nx[capture, max_tokens=3]: /.*/', "start: /a/\x00",
    ):  # fmt: skip
        with pytest.raises(RequestError):
            grammar_of(StructuredOutputs(grammar=wrong))


def test_pieces_of_larger_grammars() -> None:
    lines = [
        f"start: {literal('<call>')} args {literal('</call>')} id kind",
        f"args: {json_expr({'type': 'object', 'properties': {'x': {'type': 'integer'}}, 'required': ['x']}, 'p')}",
        f"id: {regex_expr('[0-9]{2}', 'p')}",
        f"kind: {choice_expr(['a', 'b'], 'p')}",
    ]
    grammar = "\n".join(lines)
    assert accepts(grammar, '<call>{"x": 1}</call>12a')
    assert not accepts(grammar, '<call>{"x": "1"}</call>12a')
    assert not accepts(grammar, '<call>{"x": 1}</call>1a')


ANSWER = json_grammar({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


@pytest.mark.parametrize("close", ["</think>", CLOSE_THINK])
@pytest.mark.parametrize("grammar", [ANSWER, after_reasoning('start: "x"', "--")])
def test_reasoning_comes_first(close: str | int, grammar: str) -> None:
    answer = '{"a": 1}' if grammar is ANSWER else "hm--x"

    def tokens(text: str) -> list[int]:
        before, tag, after = text.partition("</think>")
        middle = [close] if isinstance(close, int) else list(close.encode())
        return [*before.encode(), *(middle if tag else ()), *after.encode()]

    opened = after_reasoning(grammar, close)
    for text in (f"so {{ }} </think>{answer}", f"</think>\n\n{answer}"):
        assert accepts(opened, tokens(text)), text
    for text in (answer, f"so </think>x{answer}y", "so </think>", "so"):
        assert not accepts(opened, tokens(text)), text
    free = after_reasoning(ANSWER, close, open="<think>")
    answer = '{"a": 1}'
    for text in (f"<think>so</think>{answer}", f"<think></think> {answer}", answer):
        assert accepts(free, tokens(text)), text
    assert not accepts(free, tokens(f"so</think>{answer}"))


def test_special_tokens_are_no_text() -> None:
    found = matcher(after_reasoning(ANSWER, "</think>"))
    mask = found.compute_bitmask()
    assert not mask[EOS >> 3] >> (EOS & 7) & 1
    assert not mask[CLOSE_THINK >> 3] >> (CLOSE_THINK & 7) & 1


LARGE = [
    ("grammar", 'root ::= "' + "a" * (128 << 10) + '"', "131"),
    ("regex", "a" * (1 << 16) + "a", "65537"),
    ("choice", ["a" * 300, *("b" * 1_000 + str(i) for i in range(1_000))], "characters together"),
    ("json", {"enum": [f"value {i} of many" for i in range(60_000)]}, "bytes"),
    ("json", json.dumps({"const": "a" * (512 << 10)}), "bytes"),
    ("json", {"properties": {f"p{i}": {"pattern": "[a-z]{1,5}x" * 20} for i in range(400)}}, "65536"),
    ("json", {"oneOf": [{"properties": {"k": {"const": i}}, "required": ["k"]} for i in range(400)]}, "400 schemas"),
]


@pytest.mark.parametrize(("kind", "value", "words"), LARGE, ids=[f"{c[0]}-{c[2]}" for c in LARGE])
def test_what_is_too_large_is_refused_with_its_size(kind: str, value: Any, words: str) -> None:
    began = time.thread_time()
    with pytest.raises(RequestError) as refused:
        grammar_of(StructuredOutputs(**{kind: value}), "the_field")
    assert refused.value.param == "the_field" and words in refused.value.message
    assert time.thread_time() - began < 2  # 0.2 s at most; writing them whole takes many seconds


def test_a_long_chain_of_rules_takes_its_length() -> None:
    rules = [f'r{i} ::= "a" r{i + 1} | "b"' for i in range(4_000)]
    began = time.thread_time()
    grammar_of(StructuredOutputs(grammar="\n".join(["root ::= r0", *rules, 'r4000 ::= "c"'])))
    assert time.thread_time() - began < 3  # 0.3 s; its square would be 5
