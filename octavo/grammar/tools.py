"""Grammars of answers that call tools or reason first, in the manner of the model. Pure; called by
client/conversation.py.

`calls_grammar`: what the whole content has to be. Where calls are required, it is calls; else free text (or what
`content` says) in which, once a call begins, its name and arguments have to be right. Invariant: every answer that the
grammar lets end is read back by the family's parser as calls whose arguments their tools' schemas accept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from octavo.errors import Place, RequestError
from octavo.grammar.arguments import argument_rules, is_written
from octavo.grammar.spec import ANY_TEXT, after_reasoning, json_expr, literal, token
from octavo.text.tokenizer import Tokenizer
from octavo.text.toolcalls.family import Family, Form
from octavo.text.toolcalls.registry import DEFAULT
from octavo.text.toolcalls.tool import Tool

MAX_CALLS = 8
"""In one answer, so that one that has to call does not do so for ever."""


def enforceable(family: Family, tools: Sequence[Tool]) -> Family:
    """The family, or the one in whose form its calls are written where their schemas need it."""
    arguments = family.form.arguments
    if arguments is None or family.reads_hermes:
        return family
    return family if all(is_written(arguments, tool.parameters or {}) for tool in tools) else DEFAULT


def place(index: int) -> Place:
    """The field that holds the schema of a tool, as errors name it."""
    return Place("tools", index, "function", "parameters")


def calls_grammar(
    form: Form,
    tools: Sequence[tuple[int, Tool]],
    tokenizer: Tokenizer,
    *,
    content: str | None = None,
    required: bool = False,
    max_calls: int | None = None,
) -> str:
    """`tools`: each with its place in the request. `content`: the grammar of an answer without calls; None: any text.
    Raises RequestError that names the schema it is about."""
    free = not required and content is None
    trigger = form.trigger if free else None
    inside = trigger if trigger is not None and not form.start else ""  # what the head of a call has said already
    lines = [f"call: {' | '.join(f'call_{i}' for i, _ in tools)}"]
    for i, tool in tools:
        lines += reversed(_call(form, i, tool, tokenizer, inside, enforced=required or tool.strict))
    lines.append(f"calls: {_several(form, trigger, max_calls, tokenizer)}")
    if required:
        lines.append("start: calls")
    elif content is not None:
        lines.append("start: calls | @said")
        grammars = [{"lark_grammar": _text(lines)}, *_named(content, "said")]
        return json.dumps({"grammars": grammars}, ensure_ascii=False)
    elif trigger is None:
        lines += ["start: calls | said", f"said: /{form.no_calls}/"]
    else:
        lines += [_head(trigger, tokenizer), f"said: {ANY_TEXT}"]
        lines.append("start: said | head calls" if max_calls == 1 else "start: (head calls)* said")
    return _text(lines)


def with_reasoning(
    content: str | None, tags: tuple[str, str], tokenizer: Tokenizer, *, opened: bool, budget: int | None
) -> str:
    """The reasoning between its tags, of at most `budget` tokens, then `content` (None: any text). `opened`: the prompt
    has opened it; else the model may leave it out. Raises RequestError where a budget cannot be kept."""
    content = f"start: {ANY_TEXT}\n" if content is None else content
    opening = tokenizer.special_id(tags[0])
    if budget is None:
        closing = tokenizer.special_id(tags[1])
        return after_reasoning(
            content, tags[1] if closing is None else closing, open=None if opened else opening or tags[0]
        )
    closing = closing_token(tags, tokenizer)
    if closing is None:
        raise RequestError(
            f"the reasoning of this model ends with {tags[1]}, which is not one token: it cannot be given a budget",
            param="thinking_budget",
        )
    begin = "" if opened else (literal(tags[0]) if opening is None else token(opening)) + " "
    alternative = "" if opened else " | @answer"
    lines = [
        f"start: {begin}{_some_tokens(tokenizer, closing, budget)} {token(closing)} blank @answer{alternative}",
        r"blank: /[ \t\r\n]{0,4}/",
    ]
    if not opened and not budget:
        return content
    grammars = [{"lark_grammar": "\n".join(lines) + "\n"}, *_named(content, "answer")]
    return json.dumps({"grammars": grammars}, ensure_ascii=False)


def closing_token(tags: tuple[str, str], tokenizer: Tokenizer) -> int | None:
    """The one token that ends the reasoning, where there is one."""
    special = tokenizer.special_id(tags[1])
    if special is not None:
        return special
    ids = tokenizer.encode(tags[1], add_special_tokens=False)
    return ids[0] if len(ids) == 1 else None


def _text(lines: list[str]) -> str:
    return "\n".join(reversed(lines)) + "\n"


def _call(form: Form, index: int, tool: Tool, tokenizer: Tokenizer, inside: str, enforced: bool) -> list[str]:
    """The rules of one tool's call. Where the schema need not be enforced, the arguments are any object."""
    schema: dict[str, Any] = {"type": "object"}
    if enforced and tool.parameters:
        schema = {"type": "object", **tool.parameters}
    rules: list[str] | None = None
    if form.arguments is not None and enforced:
        rules = argument_rules(f"args_{index}", form.arguments, schema, place(index), closed=tool.strict)
    if rules is not None:
        arguments = f"args_{index}"
    else:
        form = form if form.arguments is None else DEFAULT.form
        arguments = json_expr(schema, place(index), closed=tool.strict)
    before = (form.before + tool.name + form.between).removeprefix(inside)
    call = f"call_{index}: {_lark(before, tokenizer)} {arguments} {_lark(form.after, tokenizer)}".rstrip()
    return [call, *(rules or [])]


def _several(form: Form, trigger: str | None, max_calls: int | None, tokenizer: Tokenizer) -> str:
    """The calls of one answer; in free text, those behind one trigger."""
    most = min(max_calls or MAX_CALLS, MAX_CALLS)
    begins_each = trigger is not None and not form.start
    more = ""
    if form.separator is not None and most > 1 and not begins_each:
        more = f"({_lark(form.separator, tokenizer)} call){{0,{most - 1}}}"
    start = form.start.removeprefix(trigger or "")
    return " ".join(part for part in (_lark(start, tokenizer), "call", more, _lark(form.end, tokenizer)) if part)


def _head(trigger: str, tokenizer: Tokenizer) -> str:
    """Text up to what begins a call."""
    special = tokenizer.special_id(trigger)
    if special is None:
        return f"head[lazy]: {ANY_TEXT} {literal(trigger)}"
    return f"head: free {token(special)}\nfree: {ANY_TEXT}"


def _lark(text: str, tokenizer: Tokenizer) -> str:
    """The text as a Lark expression, special tokens in it as tokens."""
    return " ".join(literal(s) if isinstance(s, str) else token(s) for s in tokenizer.split_special(text))


def _named(grammar: str, name: str) -> list[dict[str, Any]]:
    """A grammar's parts, to be used as `@name`."""
    parts = json.loads(grammar)["grammars"] if grammar.startswith("{") else [{"lark_grammar": grammar}]
    return [{**parts[0], "name": name}, *parts[1:]]


def _some_tokens(tokenizer: Tokenizer, closing: int, most: int) -> str:
    """At most so many tokens of any text."""
    out = sorted({*tokenizer.special_ids, *tokenizer.eos_ids, closing})
    if not most:
        return ""
    ranges, at = [], 0
    for id in [*out, tokenizer.vocab_size]:
        if id > at:
            ranges.append(f"{at}-{id - 1}")
        at = max(at, id + 1)
    return f"<[{','.join(ranges)}]>{{0,{most}}}"
