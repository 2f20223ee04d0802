"""What can be proved about a normalized JSON Schema: branches that exclude each other, loops, values without end.

Used by grammar/schema.py once the walk is done. Invariant: a proof that succeeds holds; one that fails says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from octavo.errors import RequestError

Schema = dict[str, Any] | bool
_KINDS = frozenset({"null", "boolean", "number", "string", "array", "object"})
"""Types that exclude each other: an integer is a number."""
_MAX_STEPS = 50_000
"""Of all proofs about one schema together."""


class Proof:
    def __init__(self, definitions: dict[str, Schema]) -> None:
        self._definitions = definitions
        self._steps = 0

    # -- disjoint

    def disjoint(self, left: Schema, right: Schema, around: Schema = True) -> bool:
        """No value that `around` accepts is accepted by both."""
        return self._disjoint([left, around], [right, around], 6)

    def _disjoint(self, left: list[Schema], right: list[Schema], fuel: int) -> bool:
        """No value is accepted by all of `left` and all of `right`."""
        self._steps += 1
        if fuel == 0 or self._steps > _MAX_STEPS:
            return False
        lefts, rights = list(self._conjuncts(left, 8)), list(self._conjuncts(right, 8))
        if False in lefts or False in rights:
            return True
        parts = [part for part in (*lefts, *rights) if isinstance(part, dict)]
        kinds = set(_KINDS).intersection(*map(_kinds, parts))
        if all(self._kind_excluded(kind, parts, lefts, rights, fuel) for kind in kinds):
            return True
        for mine, others in ((lefts, rights), (rights, lefts)):
            for i, part in enumerate(mine):
                if isinstance(part, dict) and (options := part.get("anyOf", part.get("oneOf"))):
                    rest = [*mine[:i], {k: v for k, v in part.items() if k not in ("anyOf", "oneOf")}, *mine[i + 1 :]]
                    if all(self._disjoint([option, *rest], others, fuel - 1) for option in options):
                        return True
        return False

    def _kind_excluded(
        self, kind: str, parts: list[dict[str, Any]], lefts: list[Schema], rights: list[Schema], fuel: int
    ) -> bool:
        """No value of this kind is accepted by all parts."""
        constants = [set(c) for part in parts if (c := _constants(part, kind)) is not None]
        if constants and not set.intersection(*constants):
            return True
        if kind == "number":
            lows = [(part[k], k != "minimum") for k in ("minimum", "exclusiveMinimum") for part in parts if k in part]
            highs = [(part[k], k == "maximum") for k in ("maximum", "exclusiveMaximum") for part in parts if k in part]
            return bool(lows and highs) and max(lows) > min(highs)  # at the same number whoever excludes it decides
        if kind == "object":
            required = {name for part in parts for name in part.get("required", ())}
            return any(
                self._disjoint(_property(lefts, name), _property(rights, name), fuel - 1) for name in sorted(required)
            )
        if kind == "array":
            low = max((part.get("minItems", 0) for part in parts), default=0)
            return low > min((part["maxItems"] for part in parts if "maxItems" in part), default=low)
        return False

    def _conjuncts(self, schemas: list[Schema], fuel: int) -> Iterator[Schema]:
        """All schemas that must hold together, references followed a few times."""
        for schema in schemas:
            if isinstance(schema, bool):
                yield schema
                continue
            yield {key: value for key, value in schema.items() if key not in ("allOf", "$ref", "$defs")}
            inner = list(schema.get("allOf", ()))
            if fuel:
                if "$ref" in schema:
                    inner.append(self._definitions[schema["$ref"].rpartition("/")[2]])
                yield from self._conjuncts(inner, fuel - 1)

    # -- loops and values without end

    def check_loops(self, refuse: Callable[[str, str, str], RequestError]) -> None:
        """Raises RequestError for a schema that refers to itself for the same value."""
        done: set[str] = set()
        for start in self._definitions:
            path: list[tuple[str, Iterator[str]]] = []
            if start not in done:
                path.append((start, self._same_value(self._definitions[start])))
            while path:
                name, names = path[-1]
                following = next(names, None)
                if following is None:
                    done.add(name)
                    path.pop()
                elif any(following == other for other, _ in path):
                    raise refuse("$ref", "", "a schema refers to itself without an object or array between")
                elif following not in done:
                    path.append((following, self._same_value(self._definitions[following])))

    def _same_value(self, schema: Schema) -> Iterator[str]:
        """The definitions that are applied to the very value the schema is applied to."""
        waiting = [schema]
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict):
                if "$ref" in part:
                    yield part["$ref"].rpartition("/")[2]
                for keyword in ("allOf", "anyOf", "oneOf"):
                    waiting += part.get(keyword, ())

    def finite(self, root: Schema) -> bool:
        """Whether some finite value may match; False is certain."""
        known: set[str] = set()
        while True:
            found = {name for name, part in self._definitions.items() if name in known or _finite(part, known)}
            if found == known:
                return _finite(root, known)
            known = found


def _kinds(part: dict[str, Any]) -> set[str]:
    if "type" not in part:
        return set(_KINDS)
    return {"number" if name == "integer" else name for name in part["type"]}


def _constants(part: dict[str, Any], kind: str) -> list[str] | None:
    """The values of a kind that `const` or `enum` leave, as texts; None: all."""
    if "const" not in part and "enum" not in part:
        return None
    given = part["enum"] if "enum" in part else [part["const"]]
    return [json.dumps(value, sort_keys=True) for value in given if _kind(value) == kind]


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _property(conjuncts: list[Schema], name: str) -> list[Schema]:
    """What must hold of a property in an object that all of them accept."""
    found: list[Schema] = []
    for part in conjuncts:
        if isinstance(part, dict):
            if name in part.get("properties", {}):
                found.append(part["properties"][name])
            elif "additionalProperties" in part and "patternProperties" not in part:
                found.append(part["additionalProperties"])
    return found


def _finite(schema: Schema, known: set[str]) -> bool:
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and schema["$ref"].rpartition("/")[2] not in known:
        return False
    if not all(_finite(part, known) for part in schema.get("allOf", ())):
        return False
    if any(not any(_finite(o, known) for o in schema[k]) for k in ("anyOf", "oneOf") if k in schema):
        return False
    kinds = _kinds(schema)
    if kinds - {"array", "object"} or "const" in schema or "enum" in schema:
        return True
    if "array" in kinds:
        prefix = schema.get("prefixItems", [])
        least = schema.get("minItems", 0)
        if all(_finite(part, known) for part in prefix[:least]) and (
            least <= len(prefix) or _finite(schema.get("items", True), known)
        ):
            return True
    if "object" not in kinds:
        return False
    return all(_finite(part, known) for name in schema.get("required", ()) for part in _property([schema], name))
