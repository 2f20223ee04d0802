"""Turns the option structs into typer parameters: one definition, shown by --help with default and environment name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from octavo import log
from octavo.config.engine import ServerConfig
from octavo.config.flags import Option, as_text, environment_notes, load, options


@cache  # nine commands have the options of an engine
def _parameter(option: Option) -> inspect.Parameter:
    default = (
        ""
        if option.default is None or option.is_list or option.is_secret
        else f" [default: {str(option.default).lower() if option.is_bool else option.default}]"
    )
    text = f"{option.help}{default} [env: {option.env}]"
    declared = typer.Option(
        f"{option.flag}/--no-{option.flag[2:]}" if option.is_bool else option.flag,
        help=text,
        metavar=None if option.is_bool else option.metavar,
        show_default=False,
    )
    kind: Any = bool | None if option.is_bool else list[str] | None if option.is_list else str | None
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, declared]
    )


_MODEL = inspect.Parameter(
    "model",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        typer.Argument(help="Folder, .gguf file, hub id or demo name. [default: smollm2-135m] [env: OCTAVO_MODEL]"),
    ],
)
_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file with options. [env: OCTAVO_CONFIG]")
    ],
)


def with_options(*structs: type[msgspec.Struct]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command `f(configs..., own options)`: it gets one built struct per type before its own parameters.

    The command's own parameters must be keyword-only with typer annotations.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]
        generated = [_parameter(o) for s in structs for o in options(s) if o.name != "model"]
        parameters = [_MODEL, *kept, *generated, _CONFIG]

        def run(**given: Any) -> None:
            config_file = given.pop("config")
            mine = {p.name: as_text(given.pop(p.name), f"--{p.name.replace('_', '-')}") for p in kept}
            built = load(structs, given, config_file)
            if "json" in (mine.get("log_format"), *(s.log_format for s in built if isinstance(s, ServerConfig))):
                log.setup("octavo", form="json")  # every line is an object
            for note in environment_notes():
                log.note(note)
            command(*built, **mine)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate
