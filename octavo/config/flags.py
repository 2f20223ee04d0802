"""From the option structs to flags, environment and TOML, and back to structs. The place that reads OCTAVO_<OPTION>.

Order: flag, then environment, then the --config file, then default. Every value, wherever it comes from, passes
the same conversion, so limits and messages are the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from octavo.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One option as the command line shows it."""

    name: str
    """Field name, e.g. max_model_len."""
    type: Any
    default: Any
    help: str
    metavar: str
    is_bool: bool
    is_list: bool
    """May be given several times, and each time several by commas."""
    is_secret: bool
    """Its value is shown nowhere."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        return "OCTAVO_" + self.name.upper()


def _metavar(kind: msgspec.inspect.Type) -> str:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _metavar(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return _metavar(next(t for t in kind.types if not isinstance(t, msgspec.inspect.NoneType)))
    if isinstance(kind, msgspec.inspect.LiteralType):
        return "|".join(str(v) for v in kind.values)
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return _metavar(kind.item_type)
    names = {msgspec.inspect.IntType: "N", msgspec.inspect.FloatType: "X", msgspec.inspect.StrType: "TEXT"}
    return names.get(type(kind), "VALUE")


def _meta(annotation: Any) -> msgspec.Meta:
    """The described Meta of `Annotated[T, Meta(...)]`, also inside `| None`."""
    for part in (annotation, *getattr(annotation, "__args__", ())):
        for extra in getattr(part, "__metadata__", ()):
            if isinstance(extra, msgspec.Meta) and extra.description:
                return extra
    return msgspec.Meta(description="")


@cache
def options(struct: type[msgspec.Struct]) -> tuple[Option, ...]:
    """All options that a struct defines, in the order of its fields."""
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    kinds = {f.name: f.type for f in info.fields}
    found = []
    for field in msgspec.structs.fields(struct):
        kind = kinds[field.name]
        inner = kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind
        meta = _meta(field.type)
        found.append(
            Option(
                name=field.name,
                type=field.type,
                default=field.default,
                help=meta.description or "",
                metavar=_metavar(inner),
                is_bool=isinstance(inner, msgspec.inspect.BoolType),
                is_list=isinstance(inner, msgspec.inspect.VarTupleType),
                is_secret=bool((meta.extra or {}).get("secret")),
            )
        )
    return tuple(found)


def _items(value: Any, origin: str) -> list[Any]:
    """The values of an option that may have several."""
    given = value if isinstance(value, list | tuple) else [value]
    items = [part for item in given for part in (item.split(",") if isinstance(item, str) else [item])]
    items = [item.strip() if isinstance(item, str) else item for item in items]
    if not items or "" in items:
        raise ConfigError(f"{origin}: a value is empty; give it one, or leave the option out")
    return items


def _convert(option: Option, value: Any, origin: str) -> Any:
    if option.is_list:
        value = _items(value, origin)
    try:
        return msgspec.convert(value, option.type, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        if option.is_secret:
            raise ConfigError(f"{origin}: must be text") from None
        reason = str(error).replace("`", "").replace(" | null", "").rstrip(".")
        if "|" in option.metavar and not option.is_bool:
            reason = f"give one of {option.metavar.replace('|', ', ')}"
        raise ConfigError(f"{origin}: {value!r} is not valid: {reason[0].lower() + reason[1:]}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        table = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"--config {path}: not valid TOML ({error})") from None
    return {str(key).replace("-", "_"): value for key, value in table.items()}


def _from_env(option: Option, env: Mapping[str, str]) -> tuple[str, str] | None:
    if (value := env.get(option.env)) not in (None, ""):
        return option.env, str(value)
    negative = f"OCTAVO_NO_{option.name.upper()}"
    if option.is_bool and (value := env.get(negative)) not in (None, ""):
        opposite = _convert(option, str(value), negative)
        return negative, "false" if opposite else "true"
    return None


def load(
    structs: tuple[type[S], ...],
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> tuple[S, ...]:
    """Build the structs from flags (None: not given), environment, TOML file and defaults. Raises ConfigError."""
    env = os.environ if env is None else env
    if config_file is None and env.get("OCTAVO_CONFIG"):
        config_file = Path(env["OCTAVO_CONFIG"])
    table = _read_toml(config_file) if config_file else {}
    known = {o.name for s in structs for o in options(s)}
    if unknown := sorted(set(table) - all_names()):
        raise ConfigError(f"--config {config_file}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    built = []
    for struct in structs:
        values: dict[str, Any] = {}
        for option in options(struct):
            if flags.get(option.name) not in (None, []):
                values[option.name] = _convert(option, flags[option.name], option.flag)
            elif found := _from_env(option, env):
                values[option.name] = _convert(option, found[1], found[0])
            elif option.name in table:
                values[option.name] = _convert(option, table[option.name], f"--config {config_file}: {option.name}")
        built.append(struct(**values))
    return tuple(built)


def all_names() -> set[str]:
    """Names of all options there are: a config file may hold options of several commands."""
    from octavo.config.engine import EngineConfig, ServerConfig

    return {o.name for s in (EngineConfig, ServerConfig) for o in options(s)}
