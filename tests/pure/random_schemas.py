"""Random JSON Schemas with every keyword that can be enforced, in combination. A strategy of hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "b", "name", "é", 'q"', "x-y", "kind"])
PATTERNS = st.sampled_from(
    [r"^\d+$", r"\w", r"^[a-z]{2,5}$", r"^(foo|bar)", r"b$", r"^\S+ \S+$", r"[^\W\d]+", r"^.{3}$", r"^(a|b$)", r"x?y*"]
)
FORMATS = st.sampled_from(
    ["date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "uri", "duration", "json-pointer",
     "uri-reference", "relative-json-pointer"]
)  # fmt: skip
NUMBERS = st.integers(-20, 120) | st.sampled_from([0.5, -1.25, 1e-3, 99.75, 0.1, 3.0])
VALUES = st.sampled_from(
    [None, True, False, 0, 1, -7, 2.5, "", "a", "é\n", 'q"\\', [], [1, "a"], {"a": 1}, {"b": [None]}]
)


def _some(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keywords)


def _typed(kind: str, **keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """With its type, mostly."""
    types = st.sampled_from([{"type": kind}, {"type": kind}, {"type": [kind, "null"]}, {}])
    return st.builds(lambda a, b: {**a, **b}, types, _some(**keywords))


_scalars = st.one_of(
    _typed("string", minLength=st.integers(0, 3), maxLength=st.integers(2, 9), pattern=PATTERNS),
    st.builds(lambda f: {"type": "string", "format": f}, FORMATS),
    _typed(
        "integer", minimum=NUMBERS, maximum=NUMBERS, exclusiveMinimum=NUMBERS, multipleOf=st.sampled_from([2, 5, 0.5])
    ),
    _typed("number", minimum=NUMBERS, exclusiveMaximum=NUMBERS, multipleOf=st.sampled_from([3, 0.25])),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {}, True, False, {"type": ["integer", "string"]}]),
    st.builds(lambda v: {"const": v}, VALUES),
    st.builds(lambda v: {"enum": v}, st.lists(VALUES, min_size=1, max_size=4)),
    st.sampled_from([{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/two"}, {"$ref": "#node"}]),
)


def _compound(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(NAMES, inner, max_size=4)
    objects = _typed(
        "object",
        properties=properties,
        required=st.lists(NAMES, unique=True, max_size=2),
        additionalProperties=inner | st.just(False),
        patternProperties=st.dictionaries(st.sampled_from(["^x", r"\d$"]), inner, min_size=1, max_size=1),
        minProperties=st.integers(0, 2),
        maxProperties=st.integers(1, 4),
        propertyNames=st.sampled_from([{"pattern": "^[a-z]+$"}, {"maxLength": 4}, {"enum": ["a", "b"]}]),
        dependentRequired=st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=1),
        dependentSchemas=st.dictionaries(NAMES, inner, max_size=1),
    )
    arrays = _typed(
        "array",
        items=inner,
        prefixItems=st.lists(inner, min_size=1, max_size=3),
        minItems=st.integers(0, 2),
        maxItems=st.integers(1, 4),
        contains=inner,
        minContains=st.integers(0, 2),
        maxContains=st.integers(1, 2),
    )
    several = st.lists(inner, min_size=1, max_size=3)
    scalars = st.sampled_from(["a", "b", "ab", 1, 2.5, True, None, "é"])
    unique = st.builds(
        lambda v: {"type": "array", "items": {"enum": v}, "uniqueItems": True},
        st.lists(scalars, min_size=1, max_size=4),
    )
    combined = st.builds(
        lambda base, more: {**(base if isinstance(base, dict) else {}), **more},
        inner,
        _some(**{"allOf": several, "anyOf": several, "oneOf": several, "not": inner, "if": inner, "then": inner}),
    )
    return st.one_of(objects, arrays, combined, unique)


_schemas = st.recursive(_scalars, _compound, max_leaves=10)


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    """With definitions that may refer to each other and to themselves."""
    return st.builds(
        lambda root, one, two, node: {
            **(root if isinstance(root, dict) else {"allOf": [root]}),
            "$defs": {"one": one, "two": two, "node": {"$anchor": "node", **node}},
        },
        _schemas,
        _schemas,
        _scalars,
        st.just(
            {"type": "object", "properties": {"next": {"$ref": "#node"}, "v": {"type": "integer"}}, "required": ["v"]}
        ),
    )
