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

from octavo.config.environment import is_foreign, notes
from octavo.config.suggest import did_you_mean
from octavo.config.wording import wanted
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
    is_path: bool
    """Of a file, whose name may hold bytes that are no text."""
    form: str
    """What to give, in words."""

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
                is_path=bool((meta.extra or {}).get("path")),
                form=(meta.extra or {}).get("form") or wanted(kind),
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
    if not option.is_path:
        value = [as_text(item, origin) for item in value] if isinstance(value, list) else as_text(value, origin)
    try:
        return msgspec.convert(value, option.type, strict=not isinstance(value, str))
    except msgspec.ValidationError:
        shown = "the value" if option.is_secret else f"{value!r:.80}"
        raise ConfigError(f"{origin}: {shown} is not valid; give {option.form}") from None


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


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        table = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not valid TOML ({error})") from None
    return {str(key).replace("-", "_"): value for key, value in table.items()}


def _from_env(option: Option, env: Mapping[str, str]) -> tuple[str, str] | None:
    value = env.get(option.env)
    if value and not is_foreign(option.env, value):
        return option.env, value
    negative = f"OCTAVO_NO_{option.name.upper()}"
    if option.is_bool and (value := env.get(negative)):
        opposite = _convert(option, value, negative)
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
    _refuse_unknown(table, {option.name for struct in structs for option in options(struct)}, config_file)
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


def _refuse_unknown(table: dict[str, Any], own: set[str], file: Path | None) -> None:
    """`own`: keys of this command."""
    unknown = sorted(set(table) - {option.name for option in _all_options()})
    if not unknown:
        return
    name = unknown[0]
    if isinstance(table[name], dict):
        raise ConfigError(f"--config {file}: [{name}] is a table; write the options at the top, without one")
    meant = did_you_mean(name, own)
    raise ConfigError(f"--config {file}: unknown key {name!r}" + (meant or f"; known: {', '.join(sorted(own))}"))


def _all_options() -> list[Option]:
    """A config file, or an environment, may hold options of several commands."""
    from octavo.config.engine import EngineConfig, ServerConfig

    return [option for struct in (EngineConfig, ServerConfig) for option in options(struct)]


def environment_notes(env: Mapping[str, str] | None = None) -> list[str]:
    """What is to be said of variables that look like options and are none."""
    every = _all_options()
    negatives = [f"OCTAVO_NO_{option.name.upper()}" for option in every if option.is_bool]
    return notes(os.environ if env is None else env, [*(option.env for option in every), *negatives])
