"""JSON that is given on while it comes: what was given out, closed, is JSON at any moment, whatever comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.text.toolcalls.json_text import MAX_DEPTH, JsonText
from octavo.text.toolcalls.pythonic import PythonText

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NOISE = st.text(alphabet='{}[]",:\\ud83tfn-+.01eE \n\x00é', max_size=40)


def given_out(reader: JsonText, pieces: list[str]) -> str:
    out = ""
    for piece in pieces:
        at = 0
        while at < len(piece) and not reader.over:
            text, at = reader.push(piece, at)
            out += text
    return out


@settings(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 1, 3]), st.data())
def test_json_is_given_on_as_it_is(value: Any, ascii_only: bool, indent: int | None, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    reader = JsonText()
    out = given_out(reader, list(text + " "))
    assert reader.done and json.loads(out) == value
    end = data.draw(st.integers(0, len(text)))
    cut = JsonText()
    out = given_out(cut, [text[:end]])
    closed = out + cut.closing()
    assert not cut.failed
    if closed:
        json.loads(closed)


@settings(deadline=None, max_examples=300)
@given(NOISE, st.sampled_from([JsonText, PythonText]), st.booleans())
def test_what_is_closed_is_json(text: str, kind: type[JsonText], in_object: bool) -> None:
    text = '{"a": ' + text if in_object else text
    reader, pieces = kind(), kind()
    out = given_out(reader, [text])
    assert given_out(pieces, list(text)) == out and pieces.state == reader.state
    was_done = reader.done
    closed = out + reader.closing()
    if closed:
        json.loads(closed)
    assert not was_done or closed == out


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ('{"a": "x\ny\t\x01"}', '{"a": "x\\ny\\t\\u0001"}'),
        (r'{"a": "\d \q \x41 \u12"}', r'{"a": "\\d \\q \\x41 \\u12"}'),
        (r'"\ud83e\udd8a"', r'"\ud83e\udd8a"'),
        (r'"\ud83e \udd8a \ud83e\ud83e\udd8a"', r'"\ufffd \ufffd \ufffd\ud83e\udd8a"'),
        (r'"\ud83e\n"', r'"\ufffd\n"'),
        ('{"a": [1, 2, ], }', '{"a": [1, 2 ] }'),
        ("[True, False, None]", "[true, false, null]"),
    ],
)
def test_what_models_get_wrong_is_put_right(text: str, out: str) -> None:
    reader = JsonText()
    found = given_out(reader, list(text))
    assert reader.done and json.loads(found) == json.loads(out)


@pytest.mark.parametrize(
    "text", ["{'a': 1}", "[1 2]", '{"a" 1}', "{1: 2}", "[NaN]", "[01]", "[+1]", "[1.]", "]", '{"a":}', "[,]"]
)
def test_what_is_no_json(text: str) -> None:
    reader = JsonText()
    given_out(reader, [text])
    assert reader.failed


def test_limits() -> None:
    deep, long = JsonText(), JsonText()
    given_out(deep, ["[" * (MAX_DEPTH + 1)])
    given_out(long, ["[" + "1" * 5000 + "]"])
    assert deep.failed and long.failed
    assert JsonText().push("", 0) == ("", 0)
