"""A family: one way in which models write tool calls. Each file beside this one that has a `FAMILY` describes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.text.toolcalls.parser import Parser


@dataclass(frozen=True, kw_only=True)
class Form:
    """How calls are written whose arguments are a JSON object, for the grammar that enforces them: `start`, the calls
    (`before` name `between` arguments `after`) with `separator` between them, `end`."""

    start: str = ""
    before: str
    between: str
    after: str = ""
    separator: str | None
    """None: one call is all that can be written."""
    end: str = ""
    trigger: str | None
    """What every call, or the first, begins with, and no other text does. None: calls have no such sign, so they can
    only be enforced where nothing else may be said."""


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
    form: Form | None
    """None: calls that have to be enforced are written as Hermes writes them, which the parser also reads."""
