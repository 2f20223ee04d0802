"""Keywords about arrays, those that llguidance lacks rewritten by others. Part of grammar/schema.py's walk.

Invariant as there: what the result accepts, the given schema accepts. `contains` is kept by the first items, unique
items by listing what may be written.
"""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any, Protocol

from octavo.grammar.objects import Schema, Walk
from octavo.grammar.references import Place

MAX_LISTS = 70
"""Arrays that unique items of an enum are taken apart into: four values in any order, six in their own."""
MAX_FIRST = 16


class ArrayWalk(Walk, Protocol):
    """What grammar/schema.py gives."""

    def schema(self, node: Any, at: str, base: str, nesting: int) -> Schema: ...
    def opposite(self, place: Place, keyword: str, node: Any) -> Schema: ...


def rewrite(walk: ArrayWalk, place: Place, out: dict[str, Any], more: list[Schema]) -> None:
    """Adds to `out`, and to `more` what must hold beside it."""
    node = place.node
    for keyword in ("minItems", "maxItems"):
        if (count := walk.count(place, keyword)) is not None:
            out[keyword] = count
    rest = "items"
    if isinstance(node.get("items"), list):
        if "prefixItems" in node:
            raise walk.refuse("items", place.at, "a list beside prefixItems has no meaning")
        out["prefixItems"] = [walk.inside(place, "items", i) for i in range(len(node["items"]))]
        rest = "additionalItems"
    elif walk.kind(place, "prefixItems", list, "a list of schemas"):
        out["prefixItems"] = [walk.inside(place, "prefixItems", i) for i in range(len(node["prefixItems"]))]
    if rest in node:
        out["items"] = walk.inside(place, rest)
    elif node.get("unevaluatedItems") not in (None, True, {}):
        walk.only_alone(place, "unevaluatedItems", "items")
        out["items"] = walk.inside(place, "unevaluatedItems")
    if node.get("uniqueItems") not in (None, False) and out.get("maxItems", 2) > 1:
        more.append(_unique(walk, place, out))
    if "contains" in node:
        more.append(_contains(walk, place))


def _contains(walk: ArrayWalk, place: Place) -> Schema:
    least, most = walk.count(place, "minContains"), walk.count(place, "maxContains")
    first = 1 if least is None else least
    if first > MAX_FIRST or (most is not None and most < first):
        raise walk.refuse("contains", place.at, f"minContains is more than maxContains or {MAX_FIRST}")
    wanted = walk.inside(place, "contains")
    found: dict[str, Any] = {"minItems": first, "prefixItems": [wanted] * first} if first else {}
    if most is not None:
        found["items"] = walk.opposite(place, "maxContains", place.node["contains"])
    return found or True


def _unique(walk: ArrayWalk, place: Place, out: dict[str, Any]) -> Schema:
    items = out.get("items")
    given = items.get("enum") if isinstance(items, dict) else None
    if given is None or "prefixItems" in out:
        why = "it can be enforced for items of an enum with at most 6 values, or with maxItems 1"
        raise walk.refuse("uniqueItems", place.at, why)
    different = [value for i, value in enumerate(given) if not any(_same(value, other) for other in given[:i])]
    sizes = range(out.get("minItems", 0), min(out.get("maxItems", len(different)), len(different)) + 1)
    for arranged in (permutations, combinations):
        lists: list[Any] = []
        for size in sizes:
            for chosen in arranged(different, size):
                lists.append(list(chosen))
                if len(lists) > MAX_LISTS:
                    break
        if len(lists) <= MAX_LISTS:
            # Other types are not its business.
            others = {"type": ["null", "boolean", "number", "string", "object"]}
            return {"anyOf": [{"enum": lists}, others]} if lists else others
    raise walk.refuse("uniqueItems", place.at, "the enum has more than 6 values; it can be enforced for fewer")


def _same(left: Any, right: Any) -> bool:
    return bool(left == right and isinstance(left, bool) == isinstance(right, bool))
