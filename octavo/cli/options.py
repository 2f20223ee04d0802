"""Turns the option structs into typer parameters: one definition for flag, value, --help and completion."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from octavo import log
from octavo.cli import names
from octavo.config.engine import DEFAULT_MODEL, EngineConfig
from octavo.config.flags import Option, environment_notes, load, options
from octavo.config.values import as_text

SETTINGS = "Settings"
"""Heading of --config and --help."""
ON = "[default: yes]"
"""In the help of a switch that is on."""


def _shown_default(option: Option) -> str:
    if option.default in (None, (), "") or option.is_secret:
        return ""
    if option.is_bool:
        return f" {ON}" if option.default else ""
    number = f"{option.default:g}" if isinstance(option.default, float) else option.default
    return f" [default: {number}]"


@cache  # most commands have the options of an engine
def _parameter(option: Option) -> inspect.Parameter:
    choices = option.metavar.split("|") if "|" in option.metavar else []

    def matching(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    declared = typer.Option(
        f"{option.flag}/--no-{option.flag[2:]}" if option.is_bool else option.flag,
        help=option.help + _shown_default(option),
        metavar=None if option.is_bool else option.metavar,
        show_default=False,
        hidden=option.is_hidden,
        rich_help_panel=option.group,
        autocompletion=matching if choices else None,
    )
    kind: Any = bool | None if option.is_bool else list[str] | None if option.is_list else str | None
    return _keyword(option.name, Annotated[kind, declared])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_MODEL = _keyword(
    "model",
    Annotated[
        str | None,
        typer.Argument(
            help=f"Folder, .gguf file, hub id (org/name) or demo name. [default: {DEFAULT_MODEL}]",
            metavar="MODEL",
            show_default=False,
            autocompletion=names.models,
        ),
    ],
)
_CONFIG = _keyword(
    "config",
    Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="TOML file with options.", rich_help_panel=SETTINGS),
    ],
)


def with_options(
    *structs: type[msgspec.Struct], groups: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command `f(structs built, in this order)`: flags, environment, config file and defaults fill them.
    Its own parameters, keyword-only with typer annotations, come besides. With an engine, `MODEL` is an argument.
    `groups`: the headings of an engine's options that the command has; by default all."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]
        has_engine = EngineConfig in structs
        offered = [
            o for s in structs for o in options(s) if not (groups and s is EngineConfig and o.group not in groups)
        ]
        generated = {o.name: _parameter(o) for o in offered if not (has_engine and o.name == "model")}
        parameters = [*([_MODEL] if has_engine else []), *kept, *generated.values(), _CONFIG]

        def run(**given: Any) -> None:
            config_file = given.pop("config")
            mine = {p.name: as_text(given.pop(p.name), p.name.upper()) for p in kept}
            built = load(structs, given, config_file)
            if any(getattr(struct, "log_format", "") == "json" for struct in built):
                log.setup("octavo", form="json")  # every line is an object
            for note in environment_notes():
                log.note(note)
            command(*built, **mine)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate
