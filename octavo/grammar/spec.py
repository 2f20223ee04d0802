"""From what a request asks for to ONE grammar text that llguidance understands: Lark, or a JSON list of named Larks.

Pure. Invariant: what cannot be enforced is a RequestError that names the field and the keyword, never left out in
silence. The pieces (`json_expr`, `regex_expr`, `choice_expr`, `literal`) are Lark expressions, for rules of a larger
grammar. What reads schemas, regexes and GBNF is imported where it is needed: every server imports this file, and most
never meet a grammar.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from octavo.errors import Field, RequestError
from octavo.types import StructuredOutputs

MAX_CHARS = 1 << 20
"""Of a grammar as it is written here."""
MAX_SCHEMA_BYTES, MAX_GRAMMAR_CHARS, MAX_CHOICE_CHARS = 512 << 10, 128 << 10, 256 << 10
"""As they are given: a JSON Schema, a GBNF or Lark grammar, all texts of a choice. Each is half a second's work at
most, done in a thread. A regex has its own bound (regexes.py)."""
ANY_TEXT = "/(?s:.*)/"
"""A Lark expression: text without special tokens."""
KINDS = ("json", "json_object", "regex", "choice", "grammar")

BLANKS = r"[ \t]|\r?\n[ \t]{0,64}"
"""Between two parts of a JSON text. Bounded: small models write blanks without end where they may."""

_BLANK = ((9, 10), (13, 13), (32, 32))
_LARK = re.compile(r'//[^\n]*|#[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\])+/|%json\s*|\[([^\]\n]*)', re.DOTALL)
"""What a Lark grammar is made of where it matters: comments, texts, regexes, schemas, options of a rule."""
_OPTION = re.compile(r"\b(stop|max_tokens|temperature)\b")


def grammar_of(structured: StructuredOutputs, param: Field = "structured_outputs") -> str:
    """The grammar of the whole output. `param` is the field that errors name. Raises RequestError."""
    if structured.structural_tag is not None:
        raise RequestError(f"{param}: structural_tag is not supported; use tools or a grammar", param=param)
    given = [kind for kind in KINDS if getattr(structured, kind) is not None]
    if len(given) != 1:
        what = " and ".join(given) or "none"
        raise RequestError(f"{param}: give exactly one of {', '.join(KINDS)}; {what} given", param=param)
    check_size(structured, param)
    if structured.grammar is not None:
        return lark_of(structured.grammar, param)
    if structured.regex is not None:
        return _checked(f"start: {regex_expr(structured.regex, param)}\n", param)
    if structured.choice is not None:
        return _checked(f"start: {choice_expr(structured.choice, param)}\n", param)
    if structured.json_object is False:
        raise RequestError(f"{param}: json_object can only be true; leave it out", param=param)
    blanks = _blanks(structured, param)
    schema = {"type": "object"} if structured.json_object else structured.json
    closed = structured.disable_additional_properties
    return _checked(f"start: {json_expr(schema, param, blanks=blanks, closed=closed)}\n", param)


def check_size(structured: StructuredOutputs, param: Field) -> None:
    """Raises RequestError that names the field, its size and the limit; takes a moment, whatever is given."""
    found = (
        ("grammar", "characters", len(structured.grammar or ""), MAX_GRAMMAR_CHARS),
        ("choice", "characters together", sum(map(len, structured.choice or ())), MAX_CHOICE_CHARS),
        ("schema", "bytes", schema_bytes(structured.json), MAX_SCHEMA_BYTES),
    )
    for what, unit, size, most in found:
        if size > most:
            raise RequestError(f"{param}: the {what} has {size} {unit}; at most {most} are taken", param=param)


def schema_bytes(schema: Any) -> int:
    """Of a JSON Schema as values, or of its text."""
    if schema is None or isinstance(schema, bool):
        return 0
    try:
        return len(schema.encode(errors="replace")) if isinstance(schema, str) else len(msgspec.json.encode(schema))
    except (TypeError, ValueError, RecursionError):
        return 0  # not JSON: who reads it says where


def json_expr(schema: Any, param: Field, *, blanks: str | None = BLANKS, closed: bool = False) -> str:
    """A Lark expression for a JSON text that a schema accepts. `schema`: JSON Schema as values, or its text. `blanks`:
    what may stand between its parts, None for nothing; `closed`: objects that name properties have no others."""
    from octavo.grammar.schema import Normalizer

    if isinstance(schema, str):
        schema = _schema_of(schema, param)
    strict = Normalizer(schema, param, closed=closed).normalized()
    spaces = {"whitespace_flexible": False} if blanks is None else {"whitespace_pattern": blanks}
    # Without \\u escapes every name has one spelling: a declared property cannot come again under another.
    strict["x-guidance"] = {**spaces, "json_allowed_escapes": 'nrbtf\\"'}
    return "%json " + json.dumps(strict, ensure_ascii=False, allow_nan=False)


def regex_expr(pattern: str, param: Field) -> str:
    """A Lark expression for text that the whole of a regex matches."""
    from octavo.grammar.patterns import whole
    from octavo.grammar.regexes import RegexError

    try:
        regexes = whole(pattern)
    except RegexError as error:
        raise RequestError(f"{param}: {error}", param=param) from None
    if len(regexes) > 1:
        raise RequestError(f"{param}: lookahead cannot be enforced in a regex; use a grammar", param=param)
    return f"/{regexes[0]}/" if regexes[0] else '""'


def choice_expr(texts: list[str], param: Field) -> str:
    """A Lark expression for one of the texts."""
    if not texts:
        raise RequestError(f"{param}: there is nothing to choose from", param=param)
    for text in texts:
        if not text:
            raise RequestError(f"{param}: a choice is empty", param=param)
    return "(" + " | ".join(map(literal, dict.fromkeys(texts))) + ")"


def literal(text: str) -> str:
    """A Lark expression for exactly this text."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def token(token_id: int) -> str:
    """A Lark expression for a special token. Not for use inside terminals (names in capitals)."""
    return f"<[{token_id}]>"


def lark_of(text: str, param: Field) -> str:
    """The Lark grammar that a client gave, as Lark or as GBNF; JSON Schemas in it are as strict as any."""
    from octavo.grammar.gbnf import GbnfError, is_gbnf, lark_of_gbnf

    _checked(text, param)
    if not text.strip():
        raise RequestError(f"{param}: the grammar is empty", param=param)
    try:
        if is_gbnf(text):
            return _checked(lark_of_gbnf(text), param)
    except GbnfError as error:
        raise RequestError(f"{param}: {error}", param=param) from None
    return _checked(_strict_lark(text, param), param)


def after_reasoning(grammar: str, close: str | int, *, open: str | int | None = None) -> str:
    """Free text up to the first `close`, then `grammar`. A tag is plain text or the id of a special token.

    `open` None: the prompt has opened the reasoning. Else the output begins with it, or with the answer at once.
    """
    named = json.loads(grammar)["grammars"] if grammar.startswith("{") else [{"lark_grammar": grammar}]
    name = f"answer{len(named)}"
    named[0] = {**named[0], "name": name}
    opening = "" if open is None else (token(open) if isinstance(open, int) else literal(open)) + " "
    lines = [f"start: {opening}thought blank @{name}" + (f" | @{name}" if opening else "")]
    if isinstance(close, int):
        lines += [f"thought: free {token(close)}", f"free: {ANY_TEXT}"]
    else:
        lines += [f"thought[lazy]: {ANY_TEXT} {literal(close)}"]
    lines += [r"blank: /[ \t\r\n]{0,4}/"]
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(lines) + "\n"}, *named]}, ensure_ascii=False)


def _checked(grammar: str, param: Field) -> str:
    if len(grammar) > MAX_CHARS:
        raise RequestError(f"{param}: it has {len(grammar)} characters as a grammar, at most {MAX_CHARS}", param=param)
    if any(0xD800 <= ord(char) < 0xE000 for char in grammar) or "\0" in grammar:
        raise RequestError(f"{param}: it holds a NUL or half of a surrogate pair, which is no text", param=param)
    return grammar


def _schema_of(text: str, param: Field) -> Any:
    """The values of a schema's text. Raises RequestError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name comes twice in an object")
        return found

    _checked(text, param)
    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"{param}: the schema is not valid JSON: {why}", param=param) from None


def _blanks(structured: StructuredOutputs, param: Field) -> str | None:
    from octavo.grammar.patterns import whole
    from octavo.grammar.regexes import RegexError, characters, parse, union

    pattern = structured.whitespace_pattern
    if structured.disable_any_whitespace:
        return None
    if pattern is None:
        return BLANKS
    try:
        if any(union(chars.ranges, _BLANK) != _BLANK for chars in characters(parse(pattern))):
            raise RegexError("only space, \\t, \\n and \\r are blanks in JSON")
        return whole(pattern)[0] or None
    except RegexError as error:
        raise RequestError(f"{param}: whitespace_pattern: {error}", param=param) from None


def _strict_lark(text: str, param: Field) -> str:
    """The grammar, its JSON Schemas made strict. Raises RequestError for options that the engine does not follow."""
    found: list[str] = []
    at = 0
    while part := _LARK.search(text, at):
        found.append(text[at : part.start()])
        at = part.end()
        if part[1] is not None and (option := _OPTION.search(part[1])):
            raise RequestError(f"{param}: the option {option[1]!r} of a rule is not supported", param=param)
        if not part[0].startswith("%json"):
            found.append(part[0])
            continue
        try:
            schema, at = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            raise RequestError(f"{param}: after %json the grammar has no valid JSON Schema", param=param) from None
        found.append(json_expr(schema, param))
    return "".join(found) + text[at:]
