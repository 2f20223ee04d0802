"""How the command line looks: --help in groups, every mistake in its use as one line with a suggestion.

Typer's own groups need Rich, which takes longer to load than all the rest of `octavo serve`'s first process.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from octavo.cli.options import ON, SETTINGS
from octavo.config.suggest import did_you_mean
from octavo.errors import ConfigError

EPILOG = (
    "Every option can also be given in the environment, as OCTAVO_MAX_NUM_SEQS for --max-num-seqs, and in a TOML file "
    "for --config or OCTAVO_CONFIG. A flag wins over the environment, that over the file."
)

MOST_OF_NAMES = 26
"""Columns: what is longer stands on a line of its own."""


class Command(TyperCommand):
    """A command whose --help lists its options under their headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if getattr(param, "hidden", False):
                continue
            is_argument = param.param_type_name == "argument"
            heading = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or SETTINGS
            groups.setdefault(heading, []).append((_written(param), getattr(param, "help", None) or ""))
        if SETTINGS in groups:
            groups[SETTINGS] = groups.pop(SETTINGS)  # last
        names = [name for rows in groups.values() for name, _ in rows]
        column = max(len(name) for name in names if len(name) <= MOST_OF_NAMES)
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(column), text) for name, text in rows], col_max=column)


def _written(param: Any) -> str:
    """`--port N`, `--json`, `--[no-]prefix-cache` (which is on), `MODEL`."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper())
    if param.secondary_opts and ON in (getattr(param, "help", None) or ""):
        return f"--[no-]{param.opts[0].removeprefix('--')}"
    return " ".join([*param.opts[:1], *([param.metavar] if param.metavar and not param.is_flag else [])])


class Group(TyperGroup):
    """A group of commands; an unknown one is told the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise ConfigError(f"no command {args[0]!r}{_hint(args[0], self.commands, ctx)}")
        return super().resolve_command(ctx, args)


def _hint(name: str, known: Iterable[str], ctx: Any) -> str:
    """What was meant, or where to look."""
    return did_you_mean(name, known) or f"; `{ctx.command_path} --help` lists them"


def one_line(error: TyperException) -> ConfigError:
    """A mistake that typer found, in the form of all others."""
    ctx: Any = getattr(error, "ctx", None)
    unknown = getattr(error, "option_name", None)
    if ctx is not None and unknown is not None and unknown not in _flags(ctx):
        return ConfigError(f"no option {unknown}{_hint(unknown, _flags(ctx), ctx)}")
    message = error.format_message().rstrip(".")
    return ConfigError(message[:1].lower() + message[1:])


def _flags(ctx: Any) -> list[str]:
    params = [param for param in ctx.command.params if not getattr(param, "hidden", False)]
    return [flag for param in params for flag in (*param.opts, *param.secondary_opts) if flag.startswith("--")]
