"""`octavo complete`: prompts in, completions out, through the same engine as the server."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from octavo.cli.fetch import fetch_with_progress
from octavo.client.offline import LLMEngine
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


def _show(console: Console, output: RequestOutput) -> None:
    console.print(Text(output.prompt or "", style="bold") + Text(output.text))
    m = output.metrics
    console.print(
        f"  [{m.completion_tokens} tokens, {output.finish_reason}, {m.tokens_per_second:.0f} tok/s, "
        f"first after {m.time_to_first_token_ms:.0f} ms]\n",
        style="dim",
        markup=False,
    )


def run_complete(
    config: EngineConfig,
    prompts: str | None,
    prompt_file: Path | None,
    *,
    batch: int | None,
    max_tokens: int,
    temperature: float,
    as_json: bool,
) -> None:
    """Print each completion in the order of the prompts; `batch` bounds how many run at once."""
    texts = read_prompts(prompts, prompt_file)
    if batch is not None:
        config = msgspec.structs.replace(config, max_num_seqs=batch)
    fetch_with_progress(config)
    console = Console(highlight=False, soft_wrap=True)
    with LLMEngine(config) as engine:
        outputs = engine.generate(texts, SamplingParams(temperature=temperature, max_tokens=max_tokens))
        for output in outputs:
            if as_json:
                print(msgspec.json.encode(output).decode())
            else:
                _show(console, output)
