"""A client's regex, parsed. Called by grammar/patterns.py.

Dialects differ: ECMA in JSON Schema, Python in most validators. Invariant: what the parsed form matches, the pattern
matches in both; where they disagree (non-ASCII letters under `\\w`, blanks, `.`), only what both match is left.
Constructs beyond regular languages are refused. Linear in the pattern's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_CHARS = 1 << 16
MAX_NESTING = 60
MAX_REPEAT = 100_000
LAST = 0x10FFFF

Ranges = tuple[tuple[int, int], ...]


class RegexError(ValueError):
    """The pattern is wrong, or cannot be enforced."""


@dataclass(frozen=True)
class Chars:
    """One character of a set; ranges are sorted, apart from each other, inclusive."""

    ranges: Ranges


@dataclass(frozen=True)
class Seq:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alt:
    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    part: Node
    low: int
    high: int | None


@dataclass(frozen=True)
class Anchor:
    start: bool


@dataclass(frozen=True)
class Ahead:
    """What must follow here, without being taken."""

    part: Node


Node = Chars | Seq | Alt | Repeat | Anchor | Ahead
EMPTY = Seq(())


def characters(node: Node) -> Iterator[Chars]:
    """All sets of characters in it."""
    if isinstance(node, Chars):
        yield node
    elif isinstance(node, Seq | Alt):
        for part in node.parts if isinstance(node, Seq) else node.options:
            yield from characters(part)
    elif isinstance(node, Repeat | Ahead):
        yield from characters(node.part)


def union(*sets: Ranges) -> Ranges:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(r for one in sets for r in one):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    found, at = [], 0
    for low, high in ranges:
        if low > at:
            found.append((at, low - 1))
        at = high + 1
    if at <= LAST:
        found.append((at, LAST))
    return tuple(found)


def _of(*chars: str) -> Ranges:
    return union(*(((ord(c[0]), ord(c[-1])),) for c in chars))


ANYTHING: Ranges = ((0, LAST),)
_DIGIT = _of("09")
_WORD = _of("09", "AZ", "az", "_")
_SPACE = _of("\t\r", " ", "\xa0", "\u1680", "\u2000\u200a", "\u2028\u2029", "\u202f", "\u205f", "\u3000")
_ASCII_REST = ((0x80, LAST),)
# Characters that no dialect takes for a digit, a letter or a blank: punctuation, symbols, and for \D letters too.
_NO_WORD = _of(
    "\xa1\xa9", "\xab\xac", "\xae\xb1", "\xb4", "\xb6\xb8", "\xbb", "\xbf", "\xd7", "\xf7", "\u2010\u2027",
    "\u2030\u203e", "\u2190\u23ff", "\u2500\u2767", "\u3001\u3003", "\u3008\u3011", "\U0001f300\U0001f64f",
)  # fmt: skip
_NO_DIGIT = _of("\xa0\u065f", "\u1e00\ua61f", "\uac00\ud7a3", "\U0001f300\U0001f64f")
_NO_SPACE_IN_ANY = union(_SPACE, _of("\x1c\x1f", "\x85", "\ufeff", "\u180e"))
_CLASSES: dict[str, Ranges] = {
    "d": _DIGIT,
    "w": _WORD,
    "s": _SPACE,
    "D": union(complement(union(_DIGIT, _ASCII_REST)), _NO_DIGIT),
    "W": union(complement(union(_WORD, _ASCII_REST)), _NO_WORD),
    "S": complement(_NO_SPACE_IN_ANY),
}
_OPPOSITE = {"d": "D", "D": "d", "w": "W", "W": "w", "s": "S", "S": "s"}
_DOT = complement(_of("\n", "\r", "\u2028\u2029"))
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_QUANTIFIER = re.compile(r"\{([0-9]+)(?:(,)([0-9]+)?)?\}")
_HEX = {"x": re.compile(r"[0-9a-fA-F]{2}"), "u": re.compile(r"[0-9a-fA-F]{4}|\{[0-9a-fA-F]{1,6}\}")}
_GROUP = re.compile(r"\(\?(?::|P?<[A-Za-z_][A-Za-z_0-9]*>)")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.nesting = 0

    def fail(self, why: str) -> RegexError:
        return RegexError(f"{why} at character {self.at} of the regex")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def alternatives(self) -> Node:
        options = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            options.append(self.sequence())
        return options[0] if len(options) == 1 else Alt(tuple(options))

    def sequence(self) -> Node:
        parts: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated(self.atom()))
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def repeated(self, part: Node) -> Node:
        char = self.peek()
        low, high = 0, None
        if char in ("*", "+", "?"):
            low, high = int(char == "+"), 1 if char == "?" else None
            self.at += 1
        elif char == "{" and (found := _QUANTIFIER.match(self.text, self.at)):
            if len(found[0]) > 20:
                raise self.fail(f"more than {MAX_REPEAT} repetitions")
            low = int(found[1])
            high = low if not found[2] else int(found[3]) if found[3] else None
            if max(low, high or 0) > MAX_REPEAT:
                raise self.fail(f"more than {MAX_REPEAT} repetitions")
            if high is not None and high < low:
                raise self.fail("a repetition whose bounds are out of order")
            self.at = found.end()
        else:
            return part
        if isinstance(part, Anchor | Ahead):
            raise self.fail("a repeated anchor")
        if self.peek() == "?":  # lazy: the same language
            self.at += 1
        if self.peek() in ("*", "+", "?") or _QUANTIFIER.match(self.text, self.at):
            raise self.fail("a repetition of a repetition, which needs a group,")
        return Repeat(part, low, high)

    def atom(self) -> Node:
        char = self.peek()
        if char == "(":
            return self.group()
        if char == "[":
            return Chars(self.bracket())
        if char == "\\":
            return Chars(self.escape(negated=False))
        if char in ("*", "+", "?") or _QUANTIFIER.match(self.text, self.at):
            raise self.fail("a repetition of nothing")
        if re.compile(r"\{,[0-9]+\}").match(self.text, self.at):
            raise self.fail("'{,n}', which dialects read differently; write {0,n},")
        self.at += 1
        if char in "^$":
            return Anchor(char == "^")
        return Chars(_DOT if char == "." else _of(char))

    def group(self) -> Node:
        ahead = self.text.startswith("(?=", self.at)
        if ahead:
            self.at += 3
        elif found := _GROUP.match(self.text, self.at):
            self.at = found.end()
        elif self.text.startswith("(?", self.at):
            kinds = {"(?!": "negative lookahead", "(?<": "lookbehind", "(?P": "a backreference"}
            what = kinds.get(self.text[self.at : self.at + 3], "flags or an unknown group")
            raise self.fail(f"{what} cannot be enforced:")
        else:
            self.at += 1
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise self.fail(f"more than {MAX_NESTING} groups inside each other")
        part = self.alternatives()
        self.nesting -= 1
        if self.peek() != ")":
            raise self.fail("a group that is not closed")
        self.at += 1
        return Ahead(part) if ahead else part

    def bracket(self) -> Ranges:
        self.at += 1
        negated = self.peek() == "^"
        self.at += negated
        if self.peek() == "]":
            raise self.fail("'[]', which dialects read differently; write [\\]],")
        sets: list[Ranges] = []
        while (char := self.peek()) != "]":
            if not char:
                raise self.fail("a '[' that is not closed")
            first = self.member(negated)
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self.member(negated)
                if first is None or last is None or first > last:
                    raise self.fail("a range that is out of order or not between characters")
                sets.append(((first, last),))
            elif first is None:
                sets.append(self.last_class)
            else:
                sets.append(((first, first),))
        self.at += 1
        found = union(*sets)
        found = complement(found) if negated else found
        if not found:
            raise self.fail("a class that no character is in")
        return found

    def member(self, negated: bool) -> int | None:
        """A code point; None for a class, which is then in `last_class`."""
        if self.peek() == "\\":
            if self.text.startswith("\\b", self.at):
                self.at += 2
                return 8
            ranges = self.escape(negated)
            if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
                return ranges[0][0]
            self.last_class = ranges
            return None
        self.at += 1
        return ord(self.text[self.at - 1])

    def escape(self, negated: bool) -> Ranges:
        char = self.text[self.at + 1 : self.at + 2]
        if char in _CLASSES:
            self.at += 2
            # In a negated class the widest reading is taken away, so that what is left all dialects agree on.
            return complement(_CLASSES[_OPPOSITE[char]]) if negated else _CLASSES[char]
        if char in _HEX and (found := _HEX[char].match(self.text, self.at + 2)):
            self.at = found.end()
            return self.code_point(int(found[0].strip("{}"), 16))
        if char in _CONTROLS and not (char == "0" and self.text[self.at + 2 : self.at + 3].isdigit()):
            self.at += 2
            return ((_CONTROLS[char], _CONTROLS[char]),)
        if not char or char.isalnum():
            kinds = {
                "b": "a word boundary",
                "B": "a word boundary",
                "p": "a Unicode property",
                "P": "a Unicode property",
            }
            what = kinds.get(char, "a backreference" if char.isdigit() else f"the escape \\{char}")
            raise self.fail(f"{what} cannot be enforced:")
        self.at += 2
        return _of(char)

    def code_point(self, code: int) -> Ranges:
        if 0xD800 <= code < 0xDC00:
            low = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})").match(self.text, self.at)
            if low:
                self.at = low.end()
                code = 0x10000 + ((code - 0xD800) << 10) + int(low[1], 16) - 0xDC00
        if 0xD800 <= code < 0xE000 or code > LAST:
            raise self.fail("an escape that is no character")
        return ((code, code),)


def parse(pattern: str) -> Node:
    """Raises RegexError."""
    if len(pattern) > MAX_CHARS:
        raise RegexError(f"the regex has {len(pattern)} characters, at most {MAX_CHARS}")
    parser = _Parser(pattern)
    found = parser.alternatives()
    if parser.peek():
        raise parser.fail("a ')' without its '('")
    return found
