"""Whether a JSON Schema is one at all: for tools whose schema the model is shown but need not be held to.

Pure; called by client/conversation.py. What is enforced is read by schema.py instead, which refuses more. Iterative and
bounded, as schemas come from anybody.
"""

from __future__ import annotations

from typing import Any

from octavo.errors import Field, RequestError
from octavo.grammar.schema import MAX_SCHEMAS, TYPES

MAX_DEPTH = 200
_ONE = ("additionalProperties", "items", "not", "if", "then", "else", "contains", "propertyNames", "additionalItems",
        "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "multipleOf")
_TEXTS = ("$ref", "$id", "pattern", "format", "title", "description")

Found = list[tuple[Any, str]]


def check_parameters(schema: dict[str, Any], param: Field) -> None:
    """Raises RequestError that names the keyword and its place."""
    if schema.get("type", "object") != "object":
        raise _refused(param, "type", "", "the arguments of a function are an object")
    waiting: list[tuple[Any, str, int]] = [(schema, "", 0)]
    count = 0
    while waiting:
        node, at, depth = waiting.pop()
        count += 1
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise _refused(param, "schema", at, "a schema must be an object, true or false")
        if depth > MAX_DEPTH or count > MAX_SCHEMAS:
            raise _refused(param, "schema", at[:60], "it is too large or nested too deeply")
        _check_values(node, at, param)
        waiting += [(inner, place, depth + 1) for inner, place in _inside(node, at, param)]


def _inside(node: dict[str, Any], at: str, param: Field) -> Found:
    """The schemas that a schema holds."""
    found: Found = []
    for keyword in _ONE:
        if keyword in node and not (keyword == "items" and isinstance(node[keyword], list)):
            found.append((node[keyword], f"{at}/{keyword}"))
    for keyword in (*_MANY, *(("items",) if isinstance(node.get("items"), list) else ())):
        if keyword in node:
            if not isinstance(node[keyword], list) or not node[keyword]:
                raise _refused(param, keyword, at, "it must be a list of schemas, not empty")
            found += [(inner, f"{at}/{keyword}/{i}") for i, inner in enumerate(node[keyword])]
    for keyword in _NAMED:
        if keyword in node:
            if not isinstance(node[keyword], dict):
                raise _refused(param, keyword, at, "it must be an object of schemas")
            found += [(inner, f"{at}/{keyword}/{name}") for name, inner in node[keyword].items()]
    return found


def _check_values(node: dict[str, Any], at: str, param: Field) -> None:
    """The keywords of one schema that hold no schemas."""
    if "type" in node:
        types = node["type"] if isinstance(node["type"], list) else [node["type"]]
        if not types or any(kind not in TYPES for kind in types):
            raise _refused(param, "type", at, f"it must be one or more of {', '.join(TYPES)}")
    if "enum" in node and not isinstance(node["enum"], list):
        raise _refused(param, "enum", at, "it must be a list of values")
    required = node.get("required", [])
    if not isinstance(required, bool) and not (
        isinstance(required, list) and all(isinstance(name, str) for name in required)
    ):
        raise _refused(param, "required", at, "it must be a list of names")
    for keyword in _COUNTS:
        value = node.get(keyword, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise _refused(param, keyword, at, "it must be a whole number, 0 or more")
    for keyword in _NUMBERS:
        value = node.get(keyword, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _refused(param, keyword, at, "it must be a number")
    for keyword in _TEXTS:
        if not isinstance(node.get(keyword, ""), str | None):
            raise _refused(param, keyword, at, "it must be a text")


def _refused(param: Field, keyword: str, at: str, why: str) -> RequestError:
    where = f" at {at[:200]}" if at else ""
    return RequestError(f"{param}: {keyword}{where}: {why}", param=param)
