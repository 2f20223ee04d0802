"""What an option takes, in words: from its type and limits."""

from __future__ import annotations

import msgspec


def wanted(kind: msgspec.inspect.Type) -> str:
    """For "give …": 'a whole number from 1 to 64', 'one of a, b'."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return wanted(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return wanted(next(part for part in kind.types if not isinstance(part, msgspec.inspect.NoneType)))
    if isinstance(kind, msgspec.inspect.LiteralType):
        return f"one of {', '.join(str(value) for value in sorted(kind.values, key=str))}"
    if isinstance(kind, msgspec.inspect.BoolType):
        return "true or false"
    if isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        noun = "a whole number" if isinstance(kind, msgspec.inspect.IntType) else "a number"
        return noun + _limits(kind)
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return f"{wanted(kind.item_type)}, or several of them"
    return "text"


def _limits(kind: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    low = [f"of at least {kind.ge}" if kind.ge is not None else f"above {kind.gt}"]
    high = [f"at most {kind.le}" if kind.le is not None else f"below {kind.lt}"]
    has_low, has_high = (kind.ge, kind.gt) != (None, None), (kind.le, kind.lt) != (None, None)
    both = low * has_low + high * has_high
    return f" {' and '.join(both)}" if both else ""
