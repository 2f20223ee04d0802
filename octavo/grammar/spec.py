"""From what a request asks for to ONE grammar text that llguidance understands: Lark, or a JSON list of named Larks.

Called by server/structured.py, grammar/tools.py and the offline clients; pure. Invariant: what cannot be enforced is a
RequestError that names the field and the keyword, never left out in silence. The pieces (`json_expr`, `regex_expr`,
`choice_expr`, `literal`) are Lark expressions, for rules of a larger grammar.
"""

from __future__ import annotations

import json
from typing import Any

from octavo.errors import RequestError
from octavo.types import StructuredOutputs

MAX_CHARS = 1 << 20
"""Of a grammar, as it is given and as it is written here."""
ANY_TEXT = "/(?s:.*)/"
"""A Lark expression: text without special tokens."""
KINDS = ("json", "json_object", "regex", "choice", "grammar")

_BLANKS = r"[ \t]{1,2}|\r?\n[ \t]{0,64}"
"""Between two parts of a JSON text. Bounded: small models write blanks without end where they may."""


def grammar_of(structured: StructuredOutputs, param: str = "structured_outputs") -> str:
    """The grammar of the whole output. `param` is the field that errors name. Raises RequestError."""
    given = [kind for kind in KINDS if getattr(structured, kind) is not None]
    if len(given) != 1:
        what = " and ".join(given) or "none"
        raise RequestError(f"{param}: give exactly one of {', '.join(KINDS)}; {what} given", param=param)
    if structured.grammar is not None:
        return lark_of(structured.grammar, param)
    if structured.regex is not None:
        return f"start: {regex_expr(structured.regex, param)}\n"
    if structured.choice is not None:
        return f"start: {choice_expr(structured.choice, param)}\n"
    schema = {"type": "object"} if structured.json_object else structured.json
    return f"start: {json_expr(schema, param)}\n"


def json_expr(schema: Any, param: str, *, blanks: str | None = _BLANKS) -> str:
    """A Lark expression for a JSON text that a schema accepts. `schema`: JSON Schema as values, or its text."""
    if isinstance(schema, str):
        schema = json.loads(schema)
    schema = {"allOf": [schema]} if isinstance(schema, bool) else dict(schema)
    schema["x-guidance"] = {"whitespace_pattern": blanks, "json_allowed_escapes": 'nrbtf\\"'}
    return "%json " + json.dumps(schema, ensure_ascii=False)


def regex_expr(pattern: str, param: str) -> str:
    """A Lark expression for text that the whole of a regex matches."""
    return "/" + pattern.replace("/", r"\/") + "/"


def choice_expr(texts: list[str], param: str) -> str:
    """A Lark expression for one of the texts."""
    if not texts or not all(texts):
        raise RequestError(f"{param}: choices must be texts that are not empty", param=param)
    return "(" + " | ".join(map(literal, texts)) + ")"


def literal(text: str) -> str:
    """A Lark expression for exactly this text."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def token(token_id: int) -> str:
    """A Lark expression for a special token. Not for use inside terminals (names in capitals)."""
    return f"<[{token_id}]>"


def lark_of(text: str, param: str) -> str:
    """The Lark grammar that a client gave, as Lark or as GBNF."""
    return text


def after_reasoning(grammar: str, close: str | int, *, open: str | int | None = None) -> str:
    """Free text up to the first `close`, then `grammar`. A tag is plain text or the id of a special token.

    `open` None: the prompt has opened the reasoning. Else the output begins with it, or with the answer at once.
    """
    named = json.loads(grammar)["grammars"] if grammar.startswith("{") else [{"lark_grammar": grammar}]
    named[0] = {**named[0], "name": "answer"}
    opening = "" if open is None else (token(open) if isinstance(open, int) else literal(open)) + " "
    lines = [f"start: {opening}thought blank @answer" + (" | @answer" if opening else "")]
    if isinstance(close, int):
        lines += [f"thought: free {token(close)}", f"free: {ANY_TEXT}"]
    else:
        lines += [f"thought[lazy]: /(?s:.*)/ {literal(close)}"]
    lines += [r"blank: /[ \t\r\n]{0,4}/"]
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(lines) + "\n"}, *named]}, ensure_ascii=False)
