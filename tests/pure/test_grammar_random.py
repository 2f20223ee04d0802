"""Random schemas, random walks through their masks: whatever comes to its end validates. OCTAVO_TEST_EXAMPLES makes it
longer."""

from __future__ import annotations

import json
import os
import random

from grammar_walks import matcher, walk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from random_schemas import PATTERNS, schemas

from octavo.errors import RequestError
from octavo.grammar.spec import grammar_of
from octavo.types import StructuredOutputs

EXAMPLES = int(os.environ.get("OCTAVO_TEST_EXAMPLES", "150"))
_settings = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@_settings
@given(schema=schemas(), seed=st.integers(0, 2**32))
def test_what_is_generated_validates(schema: dict[str, object], seed: int) -> None:
    try:
        grammar = grammar_of(StructuredOutputs(json=schema))
    except RequestError as error:
        assert error.param == "structured_outputs"
        return
    if matcher(grammar).is_error():  # what nothing matches, and what llguidance says it cannot do
        return
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    for i in range(2):
        text = walk(grammar, random.Random(seed + i), 60)
        if text is not None:
            assert not list(validator.iter_errors(json.loads(text))), text


@_settings
@given(pattern=PATTERNS | st.text(r"ab1 \dwDWsS[]^-().*+?{},|$é", max_size=12), seed=st.integers(0, 2**32))
def test_what_a_pattern_lets_through_it_matches(pattern: str, seed: int) -> None:
    import re
    import warnings

    try:
        grammar = grammar_of(StructuredOutputs(json={"type": "string", "pattern": pattern}))
    except RequestError:
        return
    if matcher(grammar).is_error():  # nothing matches
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of classes that a later Python may read as sets
        compiled = re.compile(pattern)
    text = walk(grammar, random.Random(seed), 20)
    if text is not None:
        assert compiled.search(json.loads(text)), text
