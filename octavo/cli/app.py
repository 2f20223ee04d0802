"""The command line. Each command builds its configs and hands over; an OctavoError is one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from typer.exceptions import TyperException

from octavo import log
from octavo.cli import names, usage
from octavo.cli.options import with_options
from octavo.config import commands
from octavo.config.engine import EngineConfig, ServerConfig
from octavo.config.keys import bare
from octavo.errors import ConfigError, OctavoError

app = typer.Typer(
    name="octavo",
    help="Runs language models on your own machine: an OpenAI-compatible server, a chat, a library.",
    cls=usage.Group,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
    epilog="`octavo COMMAND --help` tells a command's options; after `octavo --install-completion` the Tab key does.",
)
bench = typer.Typer(help="Measure speed: latency, throughput, serve.", cls=usage.Group, rich_markup_mode=None)
app.add_typer(bench, name="bench")

Function = Callable[..., None]


def _command(
    name: str, *structs: type[msgspec.Struct], group: typer.Typer = app, only: tuple[str, ...] = ()
) -> Callable[[Function], Function]:
    """Decorates a command that takes the options of `structs`, built, in this order. `only`: groups of an engine's."""

    def decorate(function: Function) -> Function:
        width = {"max_content_width": 100}
        made = group.command(name, cls=usage.Command, epilog=usage.EPILOG, context_settings=width)
        made(with_options(*structs, groups=only)(function))
        return function

    return decorate


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        import octavo

        print(f"octavo {octavo.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@bench.callback(invoke_without_command=True)
def _bench(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@_command("serve", EngineConfig, ServerConfig, commands.ServeSampling)
def serve(config: EngineConfig, server: ServerConfig, sampling: commands.ServeSampling) -> None:
    """Serve a model over an OpenAI-compatible HTTP API."""
    from octavo.supervisor import supervisor

    server = msgspec.structs.replace(server, sampling=commands.plain(sampling))
    raise typer.Exit(supervisor.run(config, server))


@_command("chat", commands.ChatOptions, commands.ChatSampling, EngineConfig)
def chat(options: commands.ChatOptions, sampling: commands.ChatSampling, config: EngineConfig) -> None:
    """Chat with a model in the terminal, or answer the text that is piped in."""
    from octavo.cli.chat import run_chat

    run_chat(config, commands.plain(sampling), options)


@_command("complete", commands.CompleteOptions, commands.CompleteSampling, EngineConfig)
def complete(options: commands.CompleteOptions, sampling: commands.CompleteSampling, config: EngineConfig) -> None:
    """Complete prompts and print the results."""
    from octavo.cli.complete import run_complete

    run_complete(config, commands.plain(sampling), options)


@_command("doctor", EngineConfig)
def doctor(config: EngineConfig) -> None:
    """Show the hardware, the kernels and the memory plan, and why."""
    from octavo.cli.doctor import run_doctor

    run_doctor(config)


@_command("pull", EngineConfig, only=("Model",))
def pull(config: EngineConfig) -> None:
    """Fetch a model into the cache, or a newer version of it."""
    from octavo.cli.fetch import fetch_with_progress

    print(fetch_with_progress(config, refresh=True).path)


@_command("list", commands.TableOptions)
def list_models(options: commands.TableOptions) -> None:
    """List the models in the cache."""
    from octavo.cli.cached import run_list

    run_list(as_json=options.json)


@_command("show", commands.TableOptions, EngineConfig, only=("Model",))
def show(options: commands.TableOptions, config: EngineConfig) -> None:
    """Show what a model is, from its files alone."""
    from octavo.cli.show import run_show

    run_show(config, as_json=options.json)


_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Of a model, as `octavo list` has it.", autocompletion=names.cached)
]


@_command("rm", commands.RemoveOptions)
def remove(options: commands.RemoveOptions, *, name: _Name) -> None:
    """Remove a model from the cache."""
    from octavo.cli.cached import run_remove

    run_remove(name, force=options.force)


@_command("ps", commands.TableOptions)
def ps(options: commands.TableOptions) -> None:
    """List your servers that run on this machine."""
    from octavo.cli.processes import run_ps

    run_ps(as_json=options.json)


@_command("engine", commands.EngineOptions, EngineConfig)
def engine(options: commands.EngineOptions, config: EngineConfig) -> None:
    """Run an engine alone, for `octavo serve --connect`."""
    from octavo.cli.fetch import fetch_with_progress
    from octavo.engine import process

    if options.endpoint is None or not options.endpoint.startswith("ipc://"):
        given = "is missing" if options.endpoint is None else f"{options.endpoint!r} is not valid"
        raise ConfigError(f"--endpoint: {given}; give ipc://PATH, as ipc:///tmp/engine.sock")
    log.setup("engine", options.log_level, options.log_format)
    fetch_with_progress(config, as_log=options.log_format == "json")
    process.main(config, options.endpoint, log_level=options.log_level, log_format=options.log_format)


@_command("latency", commands.LatencyOptions, EngineConfig, group=bench)
def bench_latency(options: commands.LatencyOptions, config: EngineConfig) -> None:
    """One stream: prefill and decode speed, time to first token."""
    from octavo.bench.latency import run_latency

    run_latency(config, options.input_len, options.output_len, options.iterations, _path(options.json_file))


@_command("throughput", commands.ThroughputOptions, EngineConfig, group=bench)
def bench_throughput(options: commands.ThroughputOptions, config: EngineConfig) -> None:
    """Many streams at once, without a server."""
    from octavo.bench.throughput import run_throughput

    run_throughput(config, options.num_prompts, options.input_len, options.output_len, _path(options.json_file))


@_command("serve", commands.ServeLoadOptions, group=bench)
def bench_serve(options: commands.ServeLoadOptions) -> None:
    """Load on a running server: speed, delays, errors."""
    from octavo.bench.serve import Load, run_serve

    load = Load(
        options.num_prompts,
        options.input_len,
        options.output_len,
        concurrency=options.max_concurrency,
        request_rate=options.request_rate,
    )
    key = bare(options.api_key[0]) if options.api_key else None  # the environment may name all that the server takes
    run_serve(options.url, load, model=options.model, api_key=key, json_file=_path(options.json_file))


def _path(named: str | None) -> Path | None:
    return None if named is None else Path(named).expanduser()


def main(arguments: list[str] | None = None) -> None:
    """The `octavo` command; `arguments`: without its name, by default those of the process. Ends with SystemExit."""
    try:
        sys.exit(app(arguments, prog_name="octavo", standalone_mode=False))
    except TyperException as error:
        _end(usage.one_line(error))
    except OctavoError as error:
        _end(error)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _end(error: OctavoError) -> None:
    log.last_words(error.message)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
