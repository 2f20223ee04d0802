"""Constants of a JSON Schema: which can be written in the output exactly. Used by grammar/schema.py and objects.py."""

from __future__ import annotations

import decimal
import math
from typing import Any

EXACT = 2**53 - 1
"""Whole numbers up to here are the same to every reader."""
STEP = 1e-6
"""Numbers beside an exclusive bound are multiples of it."""
MAX_WITH_STEP = 4000
"""The largest multipleOf that may meet STEP: llguidance has 32 bits for both together."""
SMALL = 1e-20
"""Numbers other than 0 below this are refused."""
_DIGITS = 15
"""That every reader of decimals reads exactly; llguidance's may be one unit off in the last place of longer ones."""
MAX_NESTING = 60
MAX_VALUES = 50_000
_SHORT_ESCAPES = "\b\f\n\r\t"


class BadValue(ValueError):
    """The constant cannot be written exactly."""


def unwritable(text: str) -> int | None:
    """The first character that a JSON text holds as a \\u escape only: the output has none, so that every text has one
    spelling."""
    for char in text:
        code = ord(char)
        if (code < 0x20 and char not in _SHORT_ESCAPES) or code == 0x7F or 0xD800 <= code < 0xE000:
            return code
    return None


def bound(value: float, *, up: bool, exclusive: bool, whole: bool) -> float:
    """An inclusive bound, a minimum with `up`, that lets through nothing which `value` excludes. `whole`: of integers.
    For an exclusive one the next number that is told apart: longer decimals would be read as the bound itself."""
    if whole:
        return (
            (math.floor(value) + 1 if exclusive else math.ceil(value))
            if up
            else (math.ceil(value) - 1 if exclusive else math.floor(value))
        )
    context = decimal.Context(prec=_DIGITS, rounding=decimal.ROUND_CEILING if up else decimal.ROUND_FLOOR)
    exact = decimal.Decimal(repr(value))
    if not exclusive:
        return float(context.plus(exact))
    return float(context.next_plus(exact) if up else context.next_minus(exact))


def is_short(value: float) -> bool:
    """Multiples of STEP can be told apart from it."""
    return abs(value) <= 1e9 and float(f"{value:.{_DIGITS}g}") == value


def unreadable(value: float) -> str | None:
    """Why a number cannot be told apart from its neighbours in every reader."""
    if abs(value) > EXACT or not math.isfinite(value):
        return "a number beyond 2^53 cannot be told apart from its neighbours"
    return f"{value} is too close to 0" if 0 < abs(value) < SMALL else None


def checked(value: Any) -> Any:
    """The value, whole numbers as such. Raises BadValue."""
    return _checked(value, 0, [MAX_VALUES])


def _checked(value: Any, nesting: int, left: list[int]) -> Any:
    left[0] -= 1
    if nesting > MAX_NESTING or left[0] < 0:
        raise BadValue("the constants in it are too many or nested too deeply")
    if isinstance(value, str):
        if (code := unwritable(value)) is not None:
            raise BadValue(f"the character U+{code:04X} cannot be written in the output")
        return value
    if isinstance(value, list):
        return [_checked(part, nesting + 1, left) for part in value]
    if isinstance(value, dict):
        return {_checked(k, nesting, left): _checked(part, nesting + 1, left) for k, part in value.items()}
    if isinstance(value, int | float) and not isinstance(value, bool):
        why = unreadable(value)
        if why is None and value != int(value) and float(f"{value:.{_DIGITS}g}") != value:
            why = f"{value} has more than {_DIGITS} digits"
        if why is not None:
            raise BadValue(why)
        return int(value) if value == int(value) else value
    return value
