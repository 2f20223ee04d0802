"""A family: one way in which models write tool calls. Each file beside this one that has a `FAMILY` describes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.text.toolcalls.parser import Parser

NO_LINE_WITH_BRACE = r"[ \t]*([^\s{][^\n]*)?(\n[ \t]*([^\s{][^\n]*)?)*"


@dataclass(frozen=True, kw_only=True)
class ArgumentForm:
    """How arguments are written one by one: `before` key `between` value `after`, with `separator` between them. Values
    are JSON; but strings, up to `string_end` (which is in `after`), stand as they are, unless it is None."""

    before: str = ""
    between: str
    after: str = ""
    separator: str = ""
    string_end: str | None = None
    key: str
    """Regex of the names that can be written so."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """How calls are written, for the grammar that enforces them: `start`, the calls (`before` name `between` arguments
    `after`) with `separator` between them, `end`."""

    start: str = ""
    before: str
    between: str
    after: str = ""
    separator: str | None
    """None: one call is all that can be written."""
    end: str = ""
    trigger: str | None
    """What every call, or the first, begins with, and no other text does. None: calls have no such sign."""
    no_calls: str = NO_LINE_WITH_BRACE
    """Without a trigger: regex of text in which no call is found."""
    arguments: ArgumentForm | None = None
    """None: they are a JSON object. Calls with a schema for which these are not enough are written as Hermes does."""


@dataclass(frozen=True, kw_only=True)
class Family:
    name: str
    aliases: tuple[str, ...] = ()
    """Further names for `--tool-call-parser`, those that users of vLLM know among them."""
    in_template: tuple[tuple[str, ...], ...] = ()
    """A chat template that mentions all strings of one of these writes calls so."""
    parser: Callable[..., Parser]
    markers: tuple[str, ...] = ()
    """Strings that the parser must see even where special tokens are hidden."""
    form: Form
    reads_hermes: bool = False
    """The parser also reads calls as Hermes writes them."""
