"""What an option takes, in words: from its type and limits."""

from __future__ import annotations

import msgspec

_Lists = (msgspec.inspect.VarTupleType, msgspec.inspect.ListType)
_UNBOUNDED = 1 << 53
"""A limit from here on bounds nothing that a person would write."""


def plain(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """The type itself: without its description, None, and the single value where there may be a list."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return plain(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        inner = [plain(each) for each in kind.types if not isinstance(each, msgspec.inspect.NoneType)]
        return next((each for each in inner if isinstance(each, _Lists)), inner[0])
    return kind


def wanted(kind: msgspec.inspect.Type) -> str:
    """For "give …": 'a whole number from 1 to 64', 'one of a, b'."""
    if isinstance(kind, msgspec.inspect.Metadata):
        return wanted(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return wanted(plain(kind))
    if isinstance(kind, msgspec.inspect.LiteralType):
        return f"one of {', '.join(str(value) for value in sorted(kind.values, key=str))}"
    if isinstance(kind, msgspec.inspect.BoolType):
        return "true or false"
    if isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        noun = "a whole number" if isinstance(kind, msgspec.inspect.IntType) else "a number"
        return noun + _limits(kind)
    if isinstance(kind, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
        most = f", at most {kind.max_length}" if kind.max_length else ""
        return f"{wanted(kind.item_type)}, or several of them{most}"
    if isinstance(kind, msgspec.inspect.DictType):
        is_by_id = isinstance(kind.key_type, msgspec.inspect.IntType)
        return 'ID:X, or several of them by commas, or {"ID": X}' if is_by_id else "a JSON object"
    if isinstance(kind, msgspec.inspect.StructType):
        return f"a JSON object with {', '.join(field.encode_name for field in kind.fields)}"
    if isinstance(kind, msgspec.inspect.StrType) and kind.max_length:
        return f"text of at most {kind.max_length} characters"
    return "text"


def _limits(kind: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    least = kind.ge if kind.ge is not None and kind.ge > -_UNBOUNDED else None
    most = kind.le if kind.le is not None and kind.le < _UNBOUNDED else None
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    low = f"of at least {least:g}" if least is not None else f"above {kind.gt:g}" if kind.gt is not None else ""
    high = f"at most {most:g}" if most is not None else f"below {kind.lt:g}" if kind.lt is not None else ""
    both = " and ".join(part for part in (low, high) if part)
    return f" {both}" if both else ""
