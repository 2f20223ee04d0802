"""GBNF, llama.cpp's grammars, as Lark. Called by grammar/spec.py; pure, linear in the text.

Rules that do not refer to themselves, however indirectly, become terminals: llguidance follows those as one regex, with
nothing lost; of the others every derivation it follows is one of the grammar. Invariant: what the result accepts, the
GBNF accepts.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from octavo.grammar.patterns import written
from octavo.grammar.regexes import ANYTHING, MAX_REPEAT, Chars, Ranges, complement, union

MAX_NESTING = 25
_RULE = re.compile(r"^[ \t]*[A-Za-z0-9_-]+[ \t\r\n]*::=", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NEXT_RULE = re.compile(r"[A-Za-z0-9_-]+(?:[ \t\r\n]|#[^\r\n]*)*::=")
_TIMES = re.compile(r"\{\s*([0-9]{1,20})\s*(?:(,)\s*([0-9]{1,20})?)?\s*\}")
_TOKEN = re.compile(r"<[^<>\s]+>")
_ESCAPE = re.compile(r"x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}")
_CONTROLS = {"n": 10, "r": 13, "t": 9}


class GbnfError(ValueError):
    """The grammar is wrong; the message says where."""


def is_gbnf(text: str) -> bool:
    """Whether a grammar is GBNF rather than Lark."""
    return _RULE.search(text) is not None


def lark_of_gbnf(text: str) -> str:
    """Raises GbnfError."""
    rules = _Parser(text).rules()
    uses = {name: {part.name for part in _parts(body) if isinstance(part, Ref)} for name, body in rules.items()}
    if "root" not in rules:
        raise GbnfError("there is no rule 'root', which a GBNF grammar starts from")
    for name, used in uses.items():
        if unknown := [other for other in used if other not in rules]:
            raise GbnfError(f"rule {name!r} uses {min(unknown)!r}, which is not defined")
    ending = _least(uses, lambda name, known: _can_end(rules[name], known))
    if "root" not in ending:
        raise GbnfError("rule 'root' never comes to an end: it needs a case without itself")
    with_token = {name for name, body in rules.items() if any(isinstance(part, Token) for part in _parts(body))}
    terminals = _least(uses, lambda name, known: name not in with_token and uses[name] <= known)
    names: dict[str, str] = {}
    for number, name in enumerate(rules):
        plain = f"r{number}_" + re.sub(r"[^a-z0-9]", "_", name.lower())
        names[name] = plain.upper() if name in terminals else plain
    lines = [f"start: {names['root']}"] + [f"{names[name]}: {_lark(body, names)}" for name, body in rules.items()]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Ref:
    name: str


@dataclass(frozen=True)
class Token:
    text: str
    """As Lark writes it, too: `<name>` or `<[id]>`."""


@dataclass(frozen=True)
class Sequence:
    parts: tuple[Body, ...]


@dataclass(frozen=True)
class Choice:
    options: tuple[Body, ...]


@dataclass(frozen=True)
class Times:
    part: Body
    low: int
    high: int | None


Body = Text | Chars | Ref | Token | Sequence | Choice | Times


def _parts(body: Body) -> Iterator[Body]:
    yield body
    inner = body.parts if isinstance(body, Sequence) else body.options if isinstance(body, Choice) else ()
    for part in (body.part,) if isinstance(body, Times) else inner:
        yield from _parts(part)


def _can_end(body: Body, known: set[str]) -> bool:
    if isinstance(body, Ref):
        return body.name in known
    if isinstance(body, Sequence):
        return all(_can_end(part, known) for part in body.parts)
    if isinstance(body, Choice):
        return any(_can_end(part, known) for part in body.options)
    return not isinstance(body, Times) or body.low == 0 or _can_end(body.part, known)


def _least(uses: dict[str, set[str]], holds: Callable[[str, set[str]], bool]) -> set[str]:
    """The least set of rules that `holds` is true of, given that set."""
    users: dict[str, list[str]] = {name: [] for name in uses}
    for name, used in uses.items():
        for other in used:
            users[other].append(name)
    known: set[str] = set()
    waiting = deque(uses)
    while waiting:
        name = waiting.popleft()
        if name not in known and holds(name, known):
            known.add(name)
            waiting += users[name]
    return known


def _lark(body: Body, names: dict[str, str]) -> str:
    if isinstance(body, Text):
        return json.dumps(body.text, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(body, Chars):
        return f"/{written(body)}/"
    if isinstance(body, Ref):
        return names[body.name]
    if isinstance(body, Token):
        return body.text
    if isinstance(body, Sequence):
        return " ".join(_lark(part, names) for part in body.parts) or '""'
    if isinstance(body, Choice):
        return "(" + " | ".join(_lark(part, names) for part in body.options) + ")"
    part = f"({_lark(body.part, names)})"
    if body.high is None and body.low <= 1:
        return part + "*+"[body.low]
    return f"{part}{{{body.low},{'' if body.high is None else body.high}}}"


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.nesting = 0

    def fail(self, why: str) -> GbnfError:
        line = self.text.count("\n", 0, self.at) + 1
        return GbnfError(f"line {line} of the grammar: {why}, before {self.text[self.at : self.at + 20]!r}")

    def skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def rules(self) -> dict[str, Body]:
        found: dict[str, Body] = {}
        self.skip(_LINES)
        while self.peek():
            name = _NAME.match(self.text, self.at)
            if not name or not _NEXT_RULE.match(self.text, self.at):
                raise self.fail("a rule 'name ::= …' should begin here")
            if name[0] in found:
                raise self.fail(f"rule {name[0]!r} is defined twice")
            self.at = self.text.index("::=", name.end()) + 3
            self.skip(_LINES)
            found[name[0]] = self.choice()
            self.skip(_LINES)
        return found

    def choice(self) -> Body:
        options = [self.sequence()]
        while True:
            at = self.at
            self.skip(_LINES)
            if self.peek() != "|":
                self.at = at
                return options[0] if len(options) == 1 else Choice(tuple(options))
            self.at += 1
            self.skip(_LINES)
            options.append(self.sequence())

    def sequence(self) -> Body:
        parts: list[Body] = []
        while True:
            self.skip(_LINES if self.nesting else _SPACE)
            if self.peek() in ("", "|", ")", "\r", "\n"):
                return parts[0] if len(parts) == 1 else Sequence(tuple(parts))
            part = self.times(self.part())
            parts.append(part)

    def part(self) -> Body:
        char = self.peek()
        if char == '"':
            return self.quoted()
        if char == "[":
            return self.bracket()
        if char == "(":
            return self.group()
        if char == ".":
            self.at += 1
            return Chars(ANYTHING)
        if found := _TOKEN.match(self.text, self.at):
            self.at = found.end()
            return Token(found[0])
        if found := _NAME.match(self.text, self.at):
            self.at = found.end()
            return Ref(found[0])
        raise self.fail("a text, a class, a group or a rule's name should stand here")

    def group(self) -> Body:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise self.fail(f"more than {MAX_NESTING} groups inside each other")
        self.at += 1
        self.skip(_LINES)
        found = self.choice()
        self.skip(_LINES)
        if self.peek() != ")":
            raise self.fail("a group is not closed")
        self.nesting -= 1
        self.at += 1
        return found

    def times(self, part: Body) -> Body:
        while True:
            self.skip(_SPACE)
            char = self.peek()
            if char in ("*", "+", "?"):
                part = Times(part, int(char == "+"), 1 if char == "?" else None)
                self.at += 1
            elif found := _TIMES.match(self.text, self.at):
                low = int(found[1])
                high = low if not found[2] else int(found[3]) if found[3] else None
                if max(low, high or 0) > MAX_REPEAT or (high is not None and high < low):
                    raise self.fail(f"repetitions go from less to more, at most {MAX_REPEAT}")
                part = Times(part, low, high)
                self.at = found.end()
            else:
                return part
            if sum(1 for _ in _depth(part)) > MAX_NESTING:
                raise self.fail(f"more than {MAX_NESTING} repetitions of each other")

    def quoted(self) -> Body:
        self.at += 1
        found = []
        while (char := self.peek()) != '"':
            if char in ("", "\n", "\r"):
                raise self.fail("a text is not closed")
            found.append(chr(self.char()))
        self.at += 1
        return Text("".join(found))

    def bracket(self) -> Body:
        self.at += 1
        negated = self.peek() == "^"
        self.at += negated
        ranges: list[Ranges] = []
        while (char := self.peek()) != "]":
            if not char:
                raise self.fail("a '[' is not closed")
            first = last = self.char()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self.char()
            if last < first:
                raise self.fail("a range is out of order")
            ranges.append(((first, last),))
        self.at += 1
        found = complement(union(*ranges)) if negated else union(*ranges)
        if not found:
            raise self.fail("no character is in this class")
        return Chars(found)

    def char(self) -> int:
        if self.peek() != "\\":
            self.at += 1
            return ord(self.text[self.at - 1])
        if found := _ESCAPE.match(self.text, self.at + 1):
            self.at = found.end()
            code = int(found[0][1:], 16)
            if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                raise self.fail("an escape that is no character")
            return code
        char = self.text[self.at + 1 : self.at + 2]
        if char not in ("\\", '"', "[", "]", "-", "^", *_CONTROLS) or not char:
            raise self.fail(f"\\{char} is no escape")
        self.at += 2
        return _CONTROLS.get(char, ord(char))


def _depth(body: Body) -> Iterator[None]:
    while isinstance(body, Times):
        yield
        body = body.part
