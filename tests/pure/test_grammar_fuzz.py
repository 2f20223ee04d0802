"""Whatever a client sends as a schema, regex or grammar is a grammar or a RequestError, never another exception."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from octavo.errors import RequestError
from octavo.grammar.spec import grammar_of
from octavo.types import StructuredOutputs

KEYWORDS = [
    "type", "const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
    "maxLength", "pattern", "format", "items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems",
    "contains", "minContains", "maxContains", "properties", "required", "patternProperties", "additionalProperties",
    "propertyNames", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "anyOf",
    "allOf", "oneOf", "not", "if", "then", "else", "$ref", "$defs", "$id", "$anchor", "$dynamicRef", "$schema",
    "unevaluatedProperties", "unevaluatedItems", "contentEncoding", "contentMediaType", "x-guidance", "a",
]  # fmt: skip
_leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True, allow_infinity=True) | st.text(max_size=5)
    | st.sampled_from(["string", "object", "array", "integer", "number", "#", "#/$defs/a", "#/items", "date", "a"])
)  # fmt: skip
_json = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
    max_leaves=14,
)
_settings = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@_settings
@given(schema=st.dictionaries(st.sampled_from(KEYWORDS), _json, max_size=5))
@example(schema={"enum": [{}], "items": {"enum": [[], {}]}, "uniqueItems": True})
@example(schema={"not": {"required": [1], "enum": 3, "properties": {"a": 3}, "minLength": "x"}})
@example(schema={"const": float("inf"), "minimum": float("nan")})
@example(schema={"minLength": float("inf"), "multipleOf": float("nan")})
@example(schema={"$ref": "http://[", "$id": "http://["})
@example(schema={"minLength": 10**400, "maximum": -(10**400)})
def test_schemas(schema: dict[str, Any]) -> None:
    with contextlib.suppress(RequestError):
        grammar_of(StructuredOutputs(json=schema))


@_settings
@given(text=st.text(r'abr0 \dwSuxp[]^-().*+?{},|$é"/:=<>%#\n', max_size=30))
@example(text="a{" + "9" * 5000 + "}")
@example(text='root ::= "a"{' + "9" * 5000 + "}")
@example(text="start: %json " + "[" * 50_000)
def test_texts(text: str) -> None:
    for structured in (
        StructuredOutputs(regex=text),
        StructuredOutputs(grammar=text),
        StructuredOutputs(grammar="root ::= " + text),
        StructuredOutputs(json=text),
        StructuredOutputs(json={}, whitespace_pattern=text),
        StructuredOutputs(choice=[text]),
    ):
        with contextlib.suppress(RequestError):
            grammar_of(structured)
