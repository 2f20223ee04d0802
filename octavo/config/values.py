"""One option's value: from text (a flag, the environment) or TOML to what its field's type says. Pure.

Invariant: a wrong value is a ConfigError that says where it came from and what to give.
"""

from __future__ import annotations

import math
import os
from typing import Any

import msgspec
from msgspec import inspect

from octavo.config.suggest import did_you_mean
from octavo.config.wording import plain
from octavo.errors import ConfigError

_Lists = (inspect.VarTupleType, inspect.ListType)


def metavar(kind: inspect.Type) -> str:
    """What --help shows for a value of a plain type."""
    if isinstance(kind, inspect.LiteralType):
        return "|".join(str(value) for value in kind.values)
    if isinstance(kind, _Lists):
        return metavar(plain(kind.item_type))
    if isinstance(kind, inspect.DictType):
        return "ID:X" if isinstance(plain(kind.key_type), inspect.IntType) else "JSON"
    names = {inspect.IntType: "N", inspect.FloatType: "X", inspect.StructType: "JSON"}
    return names.get(type(kind), "TEXT")


def convert(value: Any, declared: Any, kind: inspect.Type, origin: str, *, form: str, is_secret: bool = False) -> Any:
    """`value` as the annotation `declared`, whose plain type is `kind`. `origin`: flag, environment name or file and
    key; `form`: what to give, in words. Raises ConfigError."""
    given = _read(value, kind, origin)
    is_text = isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    try:
        converted = msgspec.convert(given, declared, strict=not is_text, str_keys=True)
        if not isinstance(converted, float) or math.isfinite(converted):
            return converted
    except msgspec.ValidationError:
        pass
    shown = "the value" if is_secret else f"{_shown(value)!r:.80}"
    meant = ""
    if isinstance(kind, inspect.LiteralType):
        meant = did_you_mean(str(value), [str(each) for each in kind.values])
    raise ConfigError(f"{origin}: {shown} is not valid; give {form}{meant}")


def _shown(value: Any) -> Any:
    """As it was given: what a flag was repeated for, by commas."""
    return ",".join(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value


def _read(value: Any, kind: inspect.Type, origin: str) -> Any:
    """Text of the forms that only options have (lists by commas, ID:X, JSON) as data; other values as they are."""
    if isinstance(kind, _Lists):
        return _items(value, kind, origin)
    if isinstance(kind, inspect.DictType | inspect.StructType) and isinstance(value, str):
        if metavar(kind) == "ID:X" and not value.lstrip().startswith("{"):
            pairs = [item.partition(":") for item in value.split(",")]
            return {key.strip(): number.strip() for key, _, number in pairs}
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            return value
    return value


def _items(value: Any, kind: inspect.VarTupleType | inspect.ListType, origin: str) -> list[Any]:
    """The values of an option that may have several. Commas separate names and numbers; free texts may hold them."""
    given = value if isinstance(value, list | tuple) else [value]
    if isinstance(kind, inspect.ListType) and isinstance(plain(kind.item_type), inspect.StrType):
        items = list(given)
    else:
        items = [part for item in given for part in (item.split(",") if isinstance(item, str) else [item])]
        items = [item.strip() if isinstance(item, str) else item for item in items]
    if not items or "" in items:
        raise ConfigError(f"{origin}: a value is empty; give it one, or leave the option out")
    return items


def as_text(value: Any, origin: str) -> Any:
    """The same, where it is text of the command line or the environment whose bytes Python could not read. Raises
    ConfigError for what is no UTF-8."""
    if not isinstance(value, str) or value.isascii():
        return value
    try:
        return os.fsencode(value).decode()
    except UnicodeEncodeError:  # it comes from a file, or this system's encoding is another
        return value
    except UnicodeDecodeError:
        raise ConfigError(f"{origin}: the value is not UTF-8 text") from None
