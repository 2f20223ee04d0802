"""A JSON Schema that accepts only what another does not. Used by grammar/schema.py for `not`, `if` and `maxContains`.

Both are schemas as clients write them. Invariant: no value is accepted by both; where a keyword has no opposite that
can be enforced, the values that it alone would exclude are left out. None: nothing that is left could be named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from octavo.grammar.regexes import ANYTHING, Alt, Chars, Node, Repeat, Seq, complement, union

_KINDS = ("null", "boolean", "number", "string", "array", "object")
_MAX_DEPTH = 8
_MAX_TEXTS = 200
_BOUNDS = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
}
"""Keyword → type it is about, its opposite, and what to add to the value."""
Follow = Callable[[Any], Any]
"""A reference → its schema, or None where it cannot be followed."""


def negated(schema: Any, follow: Follow, depth: int = _MAX_DEPTH) -> Any:
    if isinstance(schema, bool):
        return not schema
    if not isinstance(schema, dict) or depth == 0 or "$id" in schema:  # which moves the references in it
        return None
    options = [option for option in _options(schema, follow, depth - 1) if option is not None and option is not False]
    if not options:
        return None if schema else False
    return options[0] if len(options) == 1 else {"anyOf": options}


def _options(schema: dict[str, Any], follow: Follow, depth: int) -> Iterator[Any]:
    """Schemas each of which accepts only what one keyword excludes."""
    types = schema.get("type")
    if isinstance(types, str | list):
        yield _other_types([types] if isinstance(types, str) else types)
    for keyword in ("const", "enum"):
        if keyword in schema:
            yield from _other_values([schema[keyword]] if keyword == "const" else schema[keyword])
    for keyword, (kind, opposite, step) in _BOUNDS.items():
        value = schema.get(keyword)
        if isinstance(value, int | float) and not isinstance(value, bool) and (step == 0 or value + step >= 0):
            yield {"type": kind, opposite: value + step}
    for name in schema["required"] if isinstance(schema.get("required"), list) else ():
        yield {"type": "object", "properties": {str(name): False}}
    properties = schema.get("properties")
    for name, part in properties.items() if isinstance(properties, dict) else ():
        other = negated(part, follow, depth)
        if other is not None and other is not False:
            yield {"type": "object", "properties": {name: other}, "required": [name]}
    for part in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
        yield negated(part, follow, depth)
    if isinstance(schema.get("anyOf"), list):
        others = [negated(part, follow, depth) for part in schema["anyOf"]]
        yield {"allOf": others} if all(other is not None for other in others) else None
    if "not" in schema:
        yield schema["not"]
    if "$ref" in schema and (target := follow(schema["$ref"])) is not None:
        yield negated(target, follow, depth)


def _other_types(types: list[Any]) -> Any:
    others = [kind for kind in _KINDS if kind not in types and not (kind == "number" and "integer" in types)]
    return {"type": others} if others else False


def _other_values(given: Any) -> Iterator[Any]:
    """Values of types that none of the given has; other booleans; other texts."""
    if not isinstance(given, list):
        return
    texts = [value for value in given if isinstance(value, str)]
    flags = [value for value in given if isinstance(value, bool)]
    numbers = any(isinstance(value, int | float) and not isinstance(value, bool) for value in given)
    taken = {
        "null": None in given, "boolean": bool(flags), "number": numbers, "string": bool(texts),
        "array": any(isinstance(v, list) for v in given), "object": any(isinstance(v, dict) for v in given),
    }  # fmt: skip
    yield {"type": free} if (free := [kind for kind in _KINDS if not taken[kind]]) else False
    if flags:
        yield {"enum": left} if (left := [flag for flag in (True, False) if flag not in flags]) else False
    if texts and len(texts) <= _MAX_TEXTS:
        yield {"type": "string", OTHER_TEXTS: texts}


OTHER_TEXTS: Any = object()
"""A keyword that no client can write: any text but these."""


def other_texts(texts: list[str]) -> Node:
    """A regex for every text but these: it leaves the tree of them somewhere, or ends where none of them does."""
    free = Repeat(Chars(ANYTHING), 0, None)

    def leaving(tails: list[str]) -> Node:
        heads = sorted({tail[0] for tail in tails if tail})
        others = complement(union(*(((ord(head), ord(head)),) for head in heads)))
        options: list[Node] = [] if "" in tails else [Seq(())]
        options.append(Seq((Chars(others), free)))
        for head in heads:
            options.append(Seq((Chars(((ord(head), ord(head)),)), leaving([t[1:] for t in tails if t[:1] == head]))))
        return Alt(tuple(options))

    return leaving(texts)
