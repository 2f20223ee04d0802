"""The command line. Each command builds its configs and hands over; an OctavoError is one line and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from octavo import log
from octavo.cli.options import with_options
from octavo.config.engine import EngineConfig, ServerConfig
from octavo.errors import ConfigError, OctavoError

app = typer.Typer(
    name="octavo",
    help="Runs language models on your own machine: an OpenAI-compatible server, a chat, a library.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = typer.Typer(help="Measure speed: latency, throughput, serve.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        import octavo

        print(f"octavo {octavo.__version__}")
        raise typer.Exit


@app.command()
@with_options(EngineConfig, ServerConfig)
def serve(config: EngineConfig, server: ServerConfig) -> None:
    """Serve a model over an OpenAI-compatible HTTP API."""
    from octavo.supervisor import supervisor

    raise typer.Exit(supervisor.run(config, server))


@app.command()
@with_options(EngineConfig)
def engine(
    config: EngineConfig,
    *,
    endpoint: Annotated[str, typer.Option(envvar="OCTAVO_ENDPOINT", help="Where clients attach: ipc://PATH.")],
    log_level: Annotated[str, typer.Option(envvar="OCTAVO_LOG_LEVEL", help="debug, info, warning or error.")] = "info",
    log_format: Annotated[str, typer.Option(envvar="OCTAVO_LOG_FORMAT", help="text or json.")] = "text",
) -> None:
    """Run an engine alone; attach servers with `octavo serve --connect`."""
    from octavo.cli.fetch import fetch_with_progress
    from octavo.engine import process

    if not endpoint.startswith("ipc://"):
        raise ConfigError(f"--endpoint {endpoint}: give ipc://PATH")
    if log_format not in get_args(log.Format):
        raise ConfigError(f"--log-format {log_format}: it is text or json")
    if log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--log-level {log_level}: it is debug, info, warning or error")
    form: log.Format = "json" if log_format == "json" else "text"
    log.setup("engine", log_level, form)
    fetch_with_progress(config, as_log=form == "json")
    process.main(config, endpoint, log_level=log_level, log_format=form)


@app.command()
@with_options(EngineConfig)
def chat(
    config: EngineConfig,
    *,
    system: Annotated[str | None, typer.Option(help="System message to start with.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy. [default: the model's]")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 1024,
) -> None:
    """Chat with a model in the terminal."""
    from octavo.cli.chat import run_chat

    run_chat(config, system=system, temperature=temperature, max_tokens=max_tokens)


@app.command()
@with_options(EngineConfig)
def complete(
    config: EngineConfig,
    *,
    prompts: Annotated[str | None, typer.Option(help='Prompts, separated by "|".')] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="File with one prompt a line; - reads standard input.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Most prompts running at once. [default: all]")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens per prompt.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Complete prompts and print the results."""
    from octavo.cli.complete import run_complete

    run_complete(
        config, prompts, prompt_file, batch=batch, max_tokens=max_tokens, temperature=temperature, as_json=as_json
    )


@app.command()
@with_options(EngineConfig)
def pull(config: EngineConfig) -> None:
    """Fetch a model into the cache, or a newer version of a hub's model, and print where it lies."""
    from octavo.cli.fetch import fetch_with_progress

    print(fetch_with_progress(config, refresh=True).path)


@app.command()
@with_options(EngineConfig)
def doctor(config: EngineConfig) -> None:
    """Show the hardware, the kernels and the memory plan, and why, before anything loads."""
    from octavo.cli.doctor import run_doctor

    run_doctor(config)


_Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")]
_InputLen = Annotated[int, typer.Option(min=1, help="Prompt tokens.")]
_OutputLen = Annotated[int, typer.Option(min=1, help="Tokens to generate.")]


@bench.command("latency")
@with_options(EngineConfig)
def bench_latency(
    config: EngineConfig,
    *,
    input_len: _InputLen = 512,
    output_len: _OutputLen = 128,
    iterations: Annotated[int, typer.Option(min=1, help="Measured runs after one warm-up.")] = 3,
    json_file: _Json = None,
) -> None:
    """One stream: prefill and decode speed, time to first token."""
    from octavo.bench.latency import run_latency

    run_latency(config, input_len, output_len, iterations, json_file)


@bench.command("throughput")
@with_options(EngineConfig)
def bench_throughput(
    config: EngineConfig,
    *,
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests, all given at once.")] = 32,
    input_len: _InputLen = 128,
    output_len: _OutputLen = 128,
    json_file: _Json = None,
) -> None:
    """Many streams at once, without a server."""
    from octavo.bench.throughput import run_throughput

    run_throughput(config, num_prompts, input_len, output_len, json_file)


@bench.command("serve")
def bench_serve(
    *,
    url: Annotated[str, typer.Option(help="Base of an OpenAI-compatible server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Name of the model. [default: the first that is served]")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OCTAVO_API_KEY", help="Key to send.")] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests in all.")] = 64,
    input_len: _InputLen = 128,
    output_len: _OutputLen = 128,
    max_concurrency: Annotated[int | None, typer.Option(min=1, help="Most requests at once. [default: all]")] = None,
    request_rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second. [default: all at once]")
    ] = None,
    json_file: _Json = None,
) -> None:
    """Load on a running server: tokens a second, time to first token, gaps between tokens, errors."""
    from octavo.bench.serve import Load, run_serve

    load = Load(num_prompts, input_len, output_len, concurrency=max_concurrency, request_rate=request_rate)
    key = api_key.partition(",")[0] if api_key else None  # the environment may name all that the server takes
    run_serve(url, load, model=model, api_key=key, json_file=json_file)


def main() -> None:
    """Entry point of the `octavo` command."""
    try:
        app()
    except OctavoError as error:
        log.last_words(error.message)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
