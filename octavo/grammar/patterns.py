"""A client's regex → regexes in the dialect that llguidance enforces, or a RegexError that says why not.

Called by grammar/spec.py and grammar/schema.py. Invariant: a text that matches all of the result is matched by the
pattern, in ECMA and in Python. The result has no anchors: each regex is for the whole of a text.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.grammar.regexes import (
    ANYTHING,
    EMPTY,
    LAST,
    Ahead,
    Alt,
    Anchor,
    Chars,
    Node,
    Ranges,
    RegexError,
    Repeat,
    Seq,
    complement,
    parse,
)

MAX_BRANCHES = 64
"""Of a pattern whose anchors stand in different branches."""


def searched(pattern: str) -> list[str]:
    """Regexes all of which a whole text must match for the pattern to be found in it. Raises RegexError."""
    return _translated(pattern, Repeat(Chars(ANYTHING), 0, None))


def whole(pattern: str) -> list[str]:
    """Regexes all of which a whole text must match for the pattern to match the whole of it. Raises RegexError."""
    return _translated(pattern, EMPTY)


def _translated(pattern: str, around: Node) -> list[str]:
    node = parse(pattern)
    aheads: list[Node] = []
    if isinstance(node, Seq) and node.parts:
        begins = node.parts[0] == Anchor(True)
        rest = list(node.parts[begins:])
        while rest and isinstance(rest[0], Ahead) and (begins or around is EMPTY):
            ahead = rest.pop(0)
            assert isinstance(ahead, Ahead)
            aheads.append(Seq((Anchor(True), ahead.part)))
        node = Seq((*node.parts[:begins], *rest))
    free = Repeat(Chars(ANYTHING), 0, None)
    return [written(_unanchored(part, free)) for part in aheads] + [written(_unanchored(node, around))]


def _unanchored(node: Node, around: Node) -> Node:
    """A node without anchors for the whole text: `around` stands where no anchor does."""
    options = [
        Seq((*(() if start else (around,)), core, *(() if end else (around,)))) for start, core, end in _branches(node)
    ]
    return options[0] if len(options) == 1 else Alt(tuple(options))


def _branches(node: Node) -> list[tuple[bool, Node, bool]]:
    """Ways to match: (only at the start, the characters, only at the end)."""
    if isinstance(node, Anchor):
        return [(node.start, EMPTY, not node.start)]
    if isinstance(node, Ahead):
        raise RegexError("lookahead can be enforced at the very start of a regex alone, after ^")
    if not _anchored(node):
        return [(False, node, False)]
    if isinstance(node, Alt):
        found = [branch for option in node.options for branch in _branches(option)]
    elif isinstance(node, Repeat):
        if (node.low, node.high) not in ((0, 1), (1, 1)):
            raise RegexError("an anchor inside a repetition cannot be enforced")
        found = ([] if node.low else [(False, EMPTY, False)]) + _branches(node.part)
    else:
        assert isinstance(node, Seq)
        found = [(False, EMPTY, False)]
        for part in node.parts:
            found = [_joined(left, right) for left in found for right in _branches(part)]
            _check_branches(found)
    _check_branches(found)
    return found


def _check_branches(found: Sequence[object]) -> None:
    if len(found) > MAX_BRANCHES:
        raise RegexError(f"the regex has anchors in more than {MAX_BRANCHES} branches")


def _joined(left: tuple[bool, Node, bool], right: tuple[bool, Node, bool]) -> tuple[bool, Node, bool]:
    (start, before, ends), (starts, after, end) = left, right
    if (ends and after != EMPTY) or (starts and before != EMPTY):
        raise RegexError("an anchor with characters on its other side cannot be enforced")
    parts = (*(before.parts if isinstance(before, Seq) else (before,)), *((after,) if after != EMPTY else ()))
    return start or starts, Seq(parts), ends or end


def _anchored(node: Node) -> bool:
    if isinstance(node, Seq):
        return any(map(_anchored, node.parts))
    if isinstance(node, Alt):
        return any(map(_anchored, node.options))
    return _anchored(node.part) if isinstance(node, Repeat) else isinstance(node, Anchor | Ahead)


def written(node: Node) -> str:
    """A node without anchors, in the common part of all dialects; `/` is escaped."""
    if isinstance(node, Chars):
        return _class(node.ranges)
    if isinstance(node, Seq):
        return "".join(f"(?:{written(p)})" if isinstance(p, Alt) else written(p) for p in node.parts)
    if isinstance(node, Alt):
        return "|".join(map(written, node.options))
    assert isinstance(node, Repeat)
    part = written(node.part)
    part = part if isinstance(node.part, Chars) else f"(?:{part})"
    if node.high is None and node.low <= 1:
        return part + "*+"[node.low]
    bounds = f"{node.low}" if node.high == node.low else f"{node.low},{'' if node.high is None else node.high}"
    return f"{part}{{{bounds}}}"


def _class(ranges: Ranges) -> str:
    if ranges == ANYTHING:
        return "(?s:.)"
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _char(ranges[0][0])
    sign, shown = ("^", complement(ranges)) if ranges[-1][1] == LAST else ("", ranges)
    return f"[{sign}" + "".join(_char(a) if a == b else f"{_char(a)}-{_char(b)}" for a, b in shown) + "]"


def _char(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"
