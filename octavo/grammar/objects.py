"""Keywords about objects, those that llguidance lacks rewritten by others. Part of grammar/schema.py's walk.

Invariant as there: what the result accepts, the given schema accepts. llguidance writes declared properties in their
order, each at most once; names that are not declared may come twice, so they cannot count for minProperties.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import comb
from typing import Any, Protocol

from octavo.errors import RequestError
from octavo.grammar.references import Place

MAX_CASES = 64
"""Into so many cases a keyword may be taken apart."""
MAX_DEPENDENT = 6

Schema = dict[str, Any] | bool


class Walk(Protocol):
    """What grammar/schema.py gives."""

    def refuse(self, keyword: str, at: str, why: str) -> RequestError: ...
    def count(self, place: Place, keyword: str) -> int | None: ...
    def kind(self, place: Place, keyword: str, kind: type, what: str) -> Any: ...
    def names(self, value: Any, keyword: str, at: str) -> list[str]: ...
    def text(self, text: str, keyword: str, at: str) -> str: ...
    def regex(self, pattern: Any, keyword: str, at: str) -> list[str]: ...
    def inside(self, place: Place, *steps: str | int) -> Schema: ...
    def only_alone(self, place: Place, keyword: str, instead: str) -> None: ...


def rewrite(walk: Walk, place: Place, out: dict[str, Any], more: list[Schema], closed: bool) -> None:
    """Adds to `out`, and to `more` what must hold beside it. `closed`: named properties are the only ones."""
    node = place.node
    if walk.kind(place, "properties", dict, "an object of schemas") is not None:
        names = [walk.text(name, "properties", place.at) for name in node["properties"]]
        out["properties"] = {name: walk.inside(place, "properties", name) for name in names}
    if walk.kind(place, "patternProperties", dict, "an object of schemas"):
        out["patternProperties"] = dict(_patterns(walk, place))
        if len(out["patternProperties"]) < len(node["patternProperties"]):
            raise walk.refuse("patternProperties", place.at, "two of its regexes are the same")
    if node.get("required", False) is not False:  # a switch of the property itself in draft 3
        out["required"] = walk.names(node["required"], "required", place.at)
    if "additionalProperties" in node:
        out["additionalProperties"] = walk.inside(place, "additionalProperties")
    elif node.get("unevaluatedProperties") not in (None, True, {}):
        walk.only_alone(place, "unevaluatedProperties", "additionalProperties")
        out["additionalProperties"] = walk.inside(place, "unevaluatedProperties")
    elif closed and "properties" in out and "patternProperties" not in out:
        out["additionalProperties"] = False
    _counts(walk, place, out, more)
    if "propertyNames" in node:
        more.append(_names(walk, place))
    more += _dependents(walk, place)


_TOGETHER = ("allOf", "anyOf", "oneOf")
_OF_NAMES = ("properties", "patternProperties", "dependentSchemas", "dependencies", "then", "else", "$ref")


def names_elsewhere(node: dict[str, Any]) -> bool:
    """Whether a schema beside this one's own keywords names properties, too: then neither knows all of them."""
    return any(key in node for key in _OF_NAMES[2:]) or any(
        _names_some(part, 0) for key in _TOGETHER if isinstance(node.get(key), list) for part in node[key]
    )


def has_dependents(node: dict[str, Any]) -> bool:
    return "dependentSchemas" in node or "dependencies" in node


def is_choice(node: dict[str, Any]) -> bool:
    """It is another schema, or one of several, and names no properties of its own."""
    given = [key for key in (*_TOGETHER, *_OF_NAMES) if key in node]
    return given in (["anyOf"], ["oneOf"], ["$ref"]) or (given == ["allOf"] and len(node["allOf"]) == 1)


def _names_some(node: Any, nesting: int) -> bool:
    if not isinstance(node, dict):
        return False
    return (
        nesting > MAX_DEPENDENT
        or any(key in node for key in _OF_NAMES)
        or any(
            _names_some(part, nesting + 1) for key in _TOGETHER if isinstance(node.get(key), list) for part in node[key]
        )
    )


def _patterns(walk: Walk, place: Place) -> Iterator[tuple[str, Schema]]:
    for pattern in place.node["patternProperties"]:
        regexes = walk.regex(pattern, "patternProperties", place.at)
        if len(regexes) > 1:
            raise walk.refuse("patternProperties", place.at, f"{pattern[:100]!r}: lookahead cannot be enforced here")
        yield regexes[0], walk.inside(place, "patternProperties", pattern)


def _counts(walk: Walk, place: Place, out: dict[str, Any], more: list[Schema]) -> None:
    least, most = walk.count(place, "minProperties") or 0, walk.count(place, "maxProperties")
    required = out.get("required", [])
    optional = [n for n, part in out.get("properties", {}).items() if n not in required and part is not False]
    is_open = out.get("additionalProperties", True) is not False or "patternProperties" in out
    missing = least - len(required)
    if missing > 0 and is_open and missing > 1:
        why = "names that are not declared could come twice; declare and require more properties, or use at most 1"
        raise walk.refuse("minProperties", place.at, why)
    if missing > 0 and not optional:
        out["minProperties"] = least
    elif missing > 0:
        cases: list[Schema] = [{"required": list(c)} for c in _cases(walk, place, "minProperties", optional, missing)]
        if is_open:
            cases.append({"properties": dict.fromkeys(optional, False), "minProperties": least})
        more.append({"anyOf": cases})
    if most is None or (not is_open and len(required) + len(optional) <= most):
        return
    if not optional or most <= len(required):
        out["maxProperties"] = most
    elif is_open:
        why = "beside optional and further properties it cannot be enforced; use additionalProperties: false"
        raise walk.refuse("maxProperties", place.at, why)
    else:
        without = len(optional) - (most - len(required))
        chosen = _cases(walk, place, "maxProperties", optional, without)
        more.append({"anyOf": [{"properties": dict.fromkeys(names, False)} for names in chosen]})


def _cases(walk: Walk, place: Place, keyword: str, names: list[str], count: int) -> list[tuple[str, ...]]:
    if comb(len(names), count) > MAX_CASES:
        raise walk.refuse(keyword, place.at, f"with {len(names)} optional properties it has too many cases")
    return list(combinations(names, count)) or [tuple(names)]


def _names(walk: Walk, place: Place) -> Schema:
    """An object whose names the schema `propertyNames` accepts."""
    names = walk.inside(place, "propertyNames")
    if isinstance(names, bool) or not names:
        return {"maxProperties": 0} if names is False else True
    if "string" not in names.get("type", ["string"]):
        return {"maxProperties": 0}
    keywords = names.keys() - {"type"}
    if keywords & {"enum", "const"} and len(keywords) == 1:
        given = names.get("enum", [names.get("const")])
        return {"properties": {n: True for n in given if isinstance(n, str)}, "additionalProperties": False}
    if keywords == {"pattern"}:
        regex = names["pattern"]
    elif keywords and keywords <= {"minLength", "maxLength"}:
        regex = f"^(?:(?s:.){{{names.get('minLength', 0)},{names.get('maxLength', '')}}})$"
    elif not keywords or keywords <= {"minimum", "maximum", "minItems", "maxItems"}:
        return True
    else:
        raise walk.refuse("propertyNames", place.at, "only one pattern, an enum, or lengths alone can be enforced")
    return {"patternProperties": {regex: True}, "additionalProperties": False}


def _dependents(walk: Walk, place: Place) -> list[Schema]:
    found: list[Schema] = []
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, needs in (walk.kind(place, keyword, dict, "an object") or {}).items():
            walk.text(name, keyword, place.at)
            if isinstance(needs, list) or keyword == "dependentRequired":
                then: dict[str, Any] = {"required": [name, *walk.names(needs, keyword, place.at)]}
            else:
                then = {"required": [name], "allOf": [walk.inside(place, keyword, name)]}
            found.append({"anyOf": [{"properties": {name: False}}, then]})
    if len(found) > MAX_DEPENDENT:
        raise walk.refuse("dependentRequired", place.at, f"at most {MAX_DEPENDENT} dependent properties")
    return found
