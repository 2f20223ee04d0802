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
from octavo.config.values import as_text, convert, metavar
from octavo.config.wording import plain, wanted
from octavo.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)


class Option(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One option as the command line shows it."""

    name: str
    """Field name, e.g. max_model_len."""
    type: Any
    kind: Any
    """The same as msgspec.inspect has it, without None and description."""
    default: Any
    help: str
    metavar: str
    group: str
    """Heading of --help."""
    flag: str
    is_bool: bool
    is_list: bool
    """May be given several times."""
    is_secret: bool
    """Its value is shown nowhere."""
    is_path: bool
    """Of a file, whose name may hold bytes that are no text."""
    is_hidden: bool
    """Left out of --help: known, and not supported yet."""
    form: str
    """What to give, in words."""

    @property
    def env(self) -> str:
        return "OCTAVO_" + self.name.upper()


def _meta(annotation: Any) -> msgspec.Meta:
    """The described Meta of `Annotated[T, Meta(...)]`, also inside `| None`."""
    for part in (annotation, *getattr(annotation, "__args__", ())):
        for extra in getattr(part, "__metadata__", ()):
            if isinstance(extra, msgspec.Meta) and extra.description:
                return extra
    return msgspec.Meta(description="")


@cache
def options(struct: type[msgspec.Struct]) -> tuple[Option, ...]:
    """All options that a struct defines, in the order of its fields. Its class variable GROUPS names the fields at
    which a group of --help begins, LEFT_OUT those that are no options."""
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    kinds = {f.name: plain(f.type) for f in info.fields}
    groups: dict[str, str] = getattr(struct, "GROUPS", {})
    found, group = [], "Options"
    for field in msgspec.structs.fields(struct):
        group = groups.get(field.name, group)
        if field.name in getattr(struct, "LEFT_OUT", ()):
            continue
        kind, meta = kinds[field.name], _meta(field.type)
        extra = meta.extra or {}
        found.append(
            Option(
                name=field.name,
                type=field.type,
                kind=kind,
                default=field.default,
                help=meta.description or "",
                metavar=extra.get("metavar") or metavar(kind),
                group=group,
                flag=extra.get("flag") or "--" + field.name.replace("_", "-"),
                is_bool=isinstance(kind, msgspec.inspect.BoolType),
                is_list=isinstance(kind, msgspec.inspect.VarTupleType | msgspec.inspect.ListType),
                is_secret=bool(extra.get("secret")),
                is_path=bool(extra.get("path")),
                is_hidden=bool(extra.get("hidden")),
                form=extra.get("form") or wanted(kind),
            )
        )
    return tuple(found)


def _convert(option: Option, value: Any, origin: str) -> Any:
    if not option.is_path:
        value = [as_text(item, origin) for item in value] if isinstance(value, list) else as_text(value, origin)
    return convert(value, option.type, option.kind, origin, form=option.form, is_secret=option.is_secret)


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
    from octavo.config.commands import EVERY
    from octavo.config.engine import EngineConfig, ServerConfig

    return [option for struct in (EngineConfig, ServerConfig, *EVERY) for option in options(struct)]


def environment_notes(env: Mapping[str, str] | None = None) -> list[str]:
    """What is to be said of variables that look like options and are none."""
    every = _all_options()
    negatives = [f"OCTAVO_NO_{option.name.upper()}" for option in every if option.is_bool]
    return notes(os.environ if env is None else env, [*(option.env for option in every), *negatives])
