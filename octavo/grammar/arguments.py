"""The arguments of a call that are written one by one, not as a JSON object, as rules of a grammar. Used by tools.py.

Invariant: what the rules let through is read back by the family's parser as an object that the schema accepts; a schema
for which that cannot be promised is `None`, and the call is written in another form.
"""

from __future__ import annotations

import json
import re
from typing import Any

from octavo.errors import Field, RequestError
from octavo.grammar.spec import ANY_TEXT, json_expr, literal
from octavo.text.toolcalls.family import ArgumentForm
from octavo.text.toolcalls.tagged import types_of

_ABOUT = {"title", "description", "default", "examples", "$comment", "deprecated"}
_OBJECT = {"type", "properties", "required", "additionalProperties", "$defs", "definitions", "$schema", *_ABOUT}
EMPTY = '""'
_LOCAL = ('"$ref": "#/$defs/', '"$ref": "#/definitions/')


def argument_rules(
    name: str, form: ArgumentForm, schema: dict[str, Any], param: Field, *, closed: bool = False
) -> list[str] | None:
    """Rules whose first, called `name`, is the arguments of an object with this schema. `closed`: objects inside have
    the properties that are named alone, as it has itself. Raises RequestError."""
    properties = _properties(schema)
    if properties is None:
        return None
    required = schema.get("required") or []
    rules: list[str] = []
    for index, (key, value) in enumerate(properties.items()):
        written = _value(f"{name}_raw", form, value, param, closed)
        if written is None or not re.fullmatch(form.key, key):
            return None
        before = literal(form.before + key + form.between)
        rules.append(f"{name}_{index}: {before} {written}".rstrip())
    if form.string_end is not None:
        rules.append(f"{name}_raw[lazy]: {ANY_TEXT} {literal(form.string_end)}")
    names = [(f"{name}_{i}", key in required) for i, key in enumerate(properties)]
    return [*_sequence(name, names, form.separator), *rules]


def _sequence(name: str, arguments: list[tuple[str, bool]], separator: str) -> list[str]:
    """Rules for the arguments in their order, those that are not required left out or not."""
    if not separator:
        return [f"{name}: {' '.join(one if needed else one + '?' for one, needed in arguments) or EMPTY}"]
    comma = literal(separator)
    rules = [f"{name}: {name}_from0", f"{name}_from{len(arguments)}: {EMPTY}", f"{name}_more{len(arguments)}: {EMPTY}"]
    for index, (one, needed) in enumerate(arguments):
        first, more = f"{one} {name}_more{index + 1}", f"{comma} {one} {name}_more{index + 1}"
        skip_first, skip = ("", "") if needed else (f" | {name}_from{index + 1}", f" | {name}_more{index + 1}")
        rules += [f"{name}_from{index}: {first}{skip_first}", f"{name}_more{index}: {more}{skip}"]
    return rules


def _properties(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Of a schema that says nothing but which properties there are; each with the definitions it may refer to."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if schema.keys() - _OBJECT or not isinstance(properties, dict) or not isinstance(required, list):
        return None
    if any(key not in properties for key in required):
        return None
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    found: dict[str, Any] = {}
    for key, value in properties.items():
        text = json.dumps(value)
        if text.count('"$ref": ') != sum(map(text.count, _LOCAL)) or '"$id"' in text or "$anchor" in text:
            return None
        found[key] = {**definitions, **value} if isinstance(value, dict) and definitions else value
    return found


def _value(raw: str, form: ArgumentForm, schema: Any, param: Field, closed: bool) -> str | None:
    """The value and what is behind it."""
    end = form.string_end
    if end is None or types_of(schema) != {"string"}:
        return f"{json_expr(schema, param, closed=closed)} {literal(form.after) if form.after else ''}".rstrip()
    rest = form.after.partition(end)[2]
    keywords = schema.keys() - _ABOUT - {"$defs", "definitions"}
    if keywords == {"type"}:
        return f"{raw} {literal(rest) if rest else ''}".rstrip()
    values = schema.get("enum")
    if keywords <= {"type", "enum"} and values and all(isinstance(v, str) and v and end not in v for v in values):
        return f"({' | '.join(map(literal, values))}) {literal(form.after)}"
    return None


def is_written(form: ArgumentForm, schema: dict[str, Any]) -> bool:
    """Whether calls with this schema can be enforced in this form."""
    try:
        return argument_rules("a", form, schema, "") is not None
    except RequestError:
        return True  # refused in any form: the request is told so
