"""A client's JSON Schema → one that llguidance enforces to the letter, or a RequestError that names keyword and place.

Called by grammar/spec.py. Only keywords whose meaning is known here get through, so nothing that llguidance would skip
or approximate can. Several drafts are read as one: what any of them would demand is demanded. What llguidance lacks is
rewritten where the rewriting is exact, or stricter. Invariant: what the result accepts, the given schema accepts.
"""

from __future__ import annotations

import math
from typing import Any

from octavo.errors import Field, RequestError
from octavo.grammar import arrays, objects, values
from octavo.grammar.disjoint import Proof
from octavo.grammar.formats import FORMATS
from octavo.grammar.negation import OTHER_TEXTS, negated, other_texts
from octavo.grammar.patterns import searched, written
from octavo.grammar.references import Place, References, UnknownReference
from octavo.grammar.regexes import RegexError

MAX_NESTING = 60
MAX_SCHEMAS = 20_000
MAX_COUNT = 100_000
MAX_PAIRS = 50_000
"""Of schemas of a `oneOf`, which are compared with each other."""
MAX_PATTERN_CHARS = 1 << 16
"""Of all patterns together."""
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
REFUSED = {
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "disallow": "it is of draft 3; say what may match",
    "extends": "it is of draft 3; use allOf",
    "divisibleBy": "it is of draft 3; use multipleOf",
}

_NOT_EXCLUSIVE = (
    "may both match; make them exclude each other (say, by a required property with different constants), or use anyOf"
)

Schema = dict[str, Any] | bool


class Normalizer:
    """Of one document. `param` is the request's field that errors name; `closed`: objects that name properties have no
    others, except where several schemas name an object's properties together."""

    def __init__(self, document: Any, param: Field, *, closed: bool = False) -> None:
        self._document = document
        self._param = param
        self._closed = closed
        self._draft = str(document.get("$schema", "")) if isinstance(document, dict) else ""
        self._references = References(document)
        self._names: dict[int, str] = {}
        self._waiting: list[tuple[Any, str, str]] = []
        self._definitions: dict[str, Schema] = {}
        self._one_ofs: list[tuple[dict[str, Any], dict[str, Any], str]] = []
        self._multiples: set[float] = set()
        self._has_step = False
        """Numbers have to be multiples of values.STEP somewhere."""
        self._count = 0
        self._pattern_chars = 0

    def normalized(self) -> dict[str, Any]:
        """Raises RequestError."""
        root = self.schema(self._document, "", "", 0)
        while self._waiting:
            node, at, base = self._waiting.pop()
            self._definitions[self._names[id(node)]] = self.schema(node, at, base, 0)
        proof = Proof(self._definitions)
        proof.check_loops(self.refuse)
        pairs = 0
        for one_of, around, at in self._one_ofs:
            options = one_of.pop("oneOf")
            pairs += len(options) * (len(options) - 1) // 2
            if pairs > MAX_PAIRS:
                raise self.refuse("oneOf", at, f"it has {len(options)} schemas, too many to compare; use anyOf")
            for i, left in enumerate(options):
                for j in range(i + 1, len(options)):
                    if not proof.disjoint(left, options[j], around):
                        raise self.refuse("oneOf", at, f"its schemas {i} and {j} {_NOT_EXCLUSIVE}")
            one_of["anyOf"] = options
        if self._has_step and max(self._multiples, default=0) > values.MAX_WITH_STEP:
            raise self.refuse("multipleOf", "", "it is too large beside exclusive bounds; use minimum and maximum")
        if not proof.finite(root):
            raise self.refuse("schema", "", "no value matches: something required is false, or contains itself")
        whole = {"allOf": [root]} if isinstance(root, bool) else root
        return {**whole, "$defs": self._definitions}

    # -- what the keywords' own modules call

    def refuse(self, keyword: str, at: str, why: str) -> RequestError:
        where = f" at {at[:200]}" if at else ""
        return RequestError(f"{self._param}: {keyword}{where}: {why}", param=self._param)

    def count(self, place: Place, keyword: str) -> int | None:
        if keyword not in place.node:
            return None
        value: Any = place.node[keyword]
        whole = isinstance(value, int) and not isinstance(value, bool)
        whole |= isinstance(value, float) and value.is_integer()
        if not whole or value < 0:
            raise self.refuse(keyword, place.at, "it must be a whole number, 0 or more")
        if value > MAX_COUNT:
            raise self.refuse(keyword, place.at, f"it is more than {MAX_COUNT}")
        return int(value)

    def kind(self, place: Place, keyword: str, kind: type, what: str) -> Any:
        """The keyword's value, None when it is not there."""
        value = place.node.get(keyword)
        if keyword in place.node and not isinstance(value, kind):
            raise self.refuse(keyword, place.at, f"it must be {what}")
        return value

    def names(self, value: Any, keyword: str, at: str) -> list[str]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.refuse(keyword, at, "it must be a list of names")
        for name in value:
            self.text(name, keyword, at)
        return list(dict.fromkeys(value))

    def text(self, text: str, keyword: str, at: str) -> str:
        if (wrong := values.unwritable(text)) is not None:
            raise self.refuse(keyword, at, f"the character U+{wrong:04X} cannot be written in the output")
        return text

    def regex(self, pattern: Any, keyword: str, at: str) -> list[str]:
        if not isinstance(pattern, str):
            raise self.refuse(keyword, at, "a regex must be a text")
        self._pattern_chars += len(pattern)
        if self._pattern_chars > MAX_PATTERN_CHARS:
            raise self.refuse(keyword, at, f"all patterns together have more than {MAX_PATTERN_CHARS} characters")
        try:
            return [f"^(?:{regex})$" for regex in searched(pattern)]
        except RegexError as error:
            raise self.refuse(keyword, at, f"{pattern[:100]!r}: {error}") from None

    def inside(self, place: Place, *steps: str | int) -> Schema:
        """The schema that stands there, normalized."""
        node: Any = place.node
        for step in steps:
            node = node[step]
        at = place.at + "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)
        return self.schema(node, at, place.base, place.nesting + 1)

    # -- the walk

    def schema(self, node: Any, at: str, base: str, nesting: int) -> Schema:
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise self.refuse("schema", at, "a schema must be an object, true or false")
        self._count += 1
        if nesting > MAX_NESTING or self._count > MAX_SCHEMAS:
            what = f"more than {MAX_NESTING} levels" if nesting > MAX_NESTING else f"more than {MAX_SCHEMAS} schemas"
            raise self.refuse("schema", at[:60], f"{what} in it")
        place = Place(node, at, self._references.base_of(node, base), nesting)
        for keyword, why in REFUSED.items():
            if keyword in node:
                raise self.refuse(keyword, at, why)
        if node.get("contentMediaType") and "draft-07" in self._draft:
            raise self.refuse("contentMediaType", at, "what a text holds cannot be enforced")
        out: dict[str, Any] = {}
        more: list[Schema] = []
        for part in (self._types, self._values, self._numbers, self._strings):
            part(place, out, more)
        arrays.rewrite(self, place, out, more)
        outer = self._closed
        closed = outer and not objects.names_elsewhere(node)
        self._closed = outer and not objects.has_dependents(node)
        objects.rewrite(self, place, out, more, closed)
        self._closed = closed or (outer and objects.is_choice(node))
        self._applicators(place, out, more)
        self._closed = False
        self._conditions(place, more)
        self._closed = outer
        if not out and len(more) == 1:
            return more[0]
        return {**out, "allOf": more} if more else out

    def _types(self, place: Place, out: dict[str, Any], _more: list[Schema]) -> None:
        if "type" not in place.node:
            return
        given = place.node["type"]
        types = [given] if isinstance(given, str) else given
        if not isinstance(types, list) or not types or any(t not in TYPES for t in types):
            raise self.refuse("type", place.at, f"it must be one or more of {', '.join(TYPES)}")
        out["type"] = list(dict.fromkeys(t for t in types if not (t == "integer" and "number" in types)))

    def _values(self, place: Place, out: dict[str, Any], _more: list[Schema]) -> None:
        for keyword in ("const", "enum"):
            if keyword in place.node:
                value = (
                    self.kind(place, keyword, list, "a list of values") if keyword == "enum" else place.node["const"]
                )
                if keyword == "enum" and not value:
                    raise self.refuse(keyword, place.at, "it is empty, so that nothing matches")
                try:
                    out[keyword] = values.checked(value)
                except values.BadValue as error:
                    raise self.refuse(keyword, place.at, str(error)) from None

    def _numbers(self, place: Place, out: dict[str, Any], _more: list[Schema]) -> None:
        node = place.node
        for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
            value = node.get(keyword)
            if keyword not in node or (isinstance(value, bool) and keyword.startswith("exclusive")):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise self.refuse(keyword, place.at, "it must be a number")
            if (why := values.unreadable(value)) is not None:
                raise self.refuse(keyword, place.at, why)
            out[keyword] = value
        whole = "number" not in out.get("type", TYPES)
        for bound, up in (("Minimum", True), ("Maximum", False)):
            plain, exclusive = bound.lower(), f"exclusive{bound}"
            if node.get(exclusive) is True and plain in out:  # as draft 4 has it
                out[exclusive] = out.pop(plain)
            found = [values.bound(out.pop(plain), up=up, exclusive=False, whole=whole)] if plain in out else []
            if exclusive in out and (whole or not values.is_short(out[exclusive])):
                found.append(values.bound(out.pop(exclusive), up=up, exclusive=True, whole=whole))
            elif exclusive in out:
                # Numbers of few decimals do not come so close to a bound that they would be read as the bound itself.
                self._has_step = True
                out.setdefault("multipleOf", values.STEP)
            if found:
                out[plain] = max(found) if up else min(found)
        if "multipleOf" in node:
            self._multiple(place, out)

    def _multiple(self, place: Place, out: dict[str, Any]) -> None:
        value = out["multipleOf"]
        if value <= 0:
            raise self.refuse("multipleOf", place.at, "it must be more than 0")
        if value * 16 != int(value * 16):
            why = f"validators do not agree on multiples of {value}; use whole numbers, halves, quarters or eighths"
            raise self.refuse("multipleOf", place.at, why)
        self._multiples.add(value)
        scaled = [multiple * 10_000 for multiple in self._multiples]  # as llguidance has them, in 32 bits
        if max(scaled) >= 2**31 or (len(scaled) > 1 and math.prod(scaled) >= 2**32):
            raise self.refuse("multipleOf", place.at, f"{value} is too large to be enforced here")
        out["multipleOf"] = int(value) if value == int(value) else value
        out.setdefault("minimum", -values.EXACT)
        out.setdefault("maximum", values.EXACT)

    def _strings(self, place: Place, out: dict[str, Any], more: list[Schema]) -> None:
        for keyword in ("minLength", "maxLength"):
            if (count := self.count(place, keyword)) is not None:
                out[keyword] = count
        regexes: list[str] = []
        if "pattern" in place.node:
            regexes += self.regex(place.node["pattern"], "pattern", place.at)
        name = self.kind(place, "format", str, "a text")
        known = FORMATS.get(name) if name is not None else None  # others bind nothing, as the standard has it
        if known is not None and "string" in out.get("type", TYPES):
            regexes += [f"^(?:{regex})$" for regex in known.regexes]
            if known.max_length is not None:
                out["maxLength"] = min(known.max_length, out.get("maxLength", known.max_length))
        if OTHER_TEXTS in place.node:
            regexes.append(f"^(?:{written(other_texts(place.node[OTHER_TEXTS]))})$")
        if self.kind(place, "contentEncoding", str, "a text") == "base64":
            regexes += [f"^(?:{regex})$" for regex in FORMATS["byte"].regexes]
        if regexes:
            out["pattern"] = regexes[0]
            more += [{"type": out["type"], "pattern": r} if "type" in out else {"pattern": r} for r in regexes[1:]]

    def only_alone(self, place: Place, keyword: str, instead: str) -> None:
        beside = [k for k in ("$ref", "allOf", "anyOf", "oneOf", "dependentSchemas", "dependencies") if k in place.node]
        if beside:
            raise self.refuse(keyword, place.at, f"beside {beside[0]} it cannot be enforced; use {instead}")

    def _applicators(self, place: Place, out: dict[str, Any], more: list[Schema]) -> None:
        node = place.node
        if "$ref" in node:
            more.append(self._ref(place))
        for keyword in ("allOf", "anyOf", "oneOf"):
            if keyword not in node:
                continue
            if not self.kind(place, keyword, list, "a list of schemas"):
                raise self.refuse(keyword, place.at, "it is empty")
            options = [self.inside(place, keyword, i) for i in range(len(node[keyword]))]
            if keyword == "allOf":
                more += options
            elif len(options) == 1:
                more.append(options[0])
            else:
                one: dict[str, Any] = {keyword: [o for o in options if o is not False] or [False]}
                more.append(one)
                if keyword == "oneOf":
                    self._one_ofs.append((one, out, place.at))

    def _conditions(self, place: Place, more: list[Schema]) -> None:
        node = place.node
        if "not" in node:
            more.append(self.opposite(place, "not", node["not"]))
        if "if" in node and ("then" in node or "else" in node):
            holds, then, otherwise = node["if"], node.get("then", True), node.get("else", True)
            cases: list[Schema] = [self._both(place, holds, then)]
            if otherwise is not False:
                other = self.opposite(place, "if", holds)
                cases.append({"allOf": [other, self.inside(place, "else") if "else" in node else True]})
            more.append({"anyOf": cases})

    def _both(self, place: Place, *nodes: Any) -> Schema:
        return {"allOf": [self.schema(node, place.at, place.base, place.nesting + 1) for node in nodes]}

    def opposite(self, place: Place, keyword: str, node: Any) -> Schema:
        """A schema that accepts only what `node` does not. Raises RequestError where there is none."""

        def follow(reference: Any) -> Any:
            try:
                found, base = self._references.resolve(str(reference), place.base)
            except UnknownReference:
                return None
            return found if base == place.base else None  # what is in it would be resolved from elsewhere

        outer, self._closed = self._closed, False
        self.schema(node, place.at, place.base, place.nesting + 1)  # it has to be right by itself
        other = negated(node, follow)
        if other is None:
            raise self.refuse(keyword, place.at, "what does not match that schema cannot be enforced; say what may")
        found = self.schema(other, f"{place.at}/{keyword}", place.base, place.nesting + 1)
        self._closed = outer
        return found

    def _ref(self, place: Place) -> Schema:
        reference = self.kind(place, "$ref", str, "a text")
        if place.nesting and "$id" in place.node:
            raise self.refuse("$id", place.at, "beside $ref drafts read it differently; leave it out")
        try:
            node, base = self._references.resolve(reference, place.base)
        except UnknownReference as error:
            raise self.refuse("$ref", place.at, f"{reference[:100]!r}: {error}") from None
        if isinstance(node, bool):
            return node
        if id(node) not in self._names:
            self._names[id(node)] = f"d{len(self._names)}"
            self._waiting.append((node, reference[:200], base))
        return {"$ref": f"#/$defs/{self._names[id(node)]}"}
