"""`octavo complete`: prompts in, completions out, through the same engine as the server. What it is asked for goes to
standard output, everything about it to standard error."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from rich.console import Console

from octavo.cli.fetch import fetch_with_progress
from octavo.cli.terminal import visible
from octavo.client.offline import LLMEngine
from octavo.config.commands import CompleteOptions
from octavo.config.engine import EngineConfig
from octavo.errors import ConfigError
from octavo.types import RequestOutput, SamplingParams


def read_prompts(prompts: str | None, prompt_file: Path | None) -> list[str]:
    """Prompts of `--prompts "a | b"` and `--prompt-file` (one a line), empty ones left out."""
    found = [p.strip() for p in prompts.split("|")] if prompts else []
    if prompt_file is not None:
        try:
            text = sys.stdin.read() if str(prompt_file) == "-" else prompt_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(f"--prompt-file {prompt_file}: {reason}") from None
        found += text.splitlines()
    found = [p for p in found if p.strip()]
    if not found:
        raise ConfigError('no prompt: give --prompts "a | b" or --prompt-file FILE')
    return found


def _show(output: RequestOutput, about: Console, *, echo: bool) -> None:
    is_terminal = sys.stdout.isatty()
    for choice in output.outputs:
        text = (output.prompt or "" if echo else "") + choice.text
        print(visible(text) if is_terminal else text, flush=True)
        heading = f"choice {choice.index + 1}: " if len(output.outputs) > 1 else ""
        about.print(f"  {heading}{len(choice.token_ids)} tokens, {choice.finish_reason}", style="dim", markup=False)
    m = output.metrics
    about.print(
        f"  {m.tokens_per_second:.0f} tokens/s, the first after {m.time_to_first_token_ms:.0f} ms\n",
        style="dim",
        markup=False,
    )


def run_complete(config: EngineConfig, params: SamplingParams, options: CompleteOptions) -> None:
    """Print each completion in the order of the prompts; `options.batch` bounds how many run at once."""
    texts = read_prompts(options.prompts, Path(options.prompt_file).expanduser() if options.prompt_file else None)
    if options.batch is not None:
        config = msgspec.structs.replace(config, max_num_seqs=options.batch)
    fetch_with_progress(config)
    about = Console(highlight=False, soft_wrap=True, stderr=True)
    with LLMEngine(config) as engine:
        for output in engine.generate(texts, params):
            if options.json:
                print(msgspec.json.encode(output).decode())
            else:
                _show(output, about, echo=options.echo)
