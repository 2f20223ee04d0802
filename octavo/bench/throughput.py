"""`octavo bench throughput`: many requests given at once to an engine in this process, without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from octavo.bench.driver import Bench, Timeline
from octavo.bench.report import check_writable, report, spread_ms
from octavo.config.engine import EngineConfig
from octavo.executor.base import Executor

WARM_UP_TOKENS = 4


def run_throughput(
    config: EngineConfig,
    num_prompts: int,
    input_len: int,
    output_len: int,
    json_file: Path | None = None,
    *,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """A short warm-up of the same width, then one measured run; → the figures."""
    check_writable(json_file)
    console = Console()
    with console.status("loading the model…"):
        bench = Bench(config, input_len, output_len, executor)
    try:
        with console.status("warming up…"):
            bench.run(num_prompts, output_len=min(WARM_UP_TOKENS, output_len))
        columns = (TextColumn("tokens"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=num_prompts * output_len)
            timelines = bench.run(num_prompts, on_tokens=lambda count: progress.advance(task, count))
        figures = throughput_figures(timelines, input_len)
        load = {"num_prompts": num_prompts, "input_len": input_len, "output_len": output_len}
        info = bench.engine.info
        report("throughput", figures, load, config=bench.config, engine=info, json_file=json_file, console=console)
        return figures
    finally:
        bench.close()


def throughput_figures(timelines: list[Timeline], input_len: int) -> dict[str, Any]:
    """`output_tok_s` and `total_tok_s`: output, or prompts and output, over the whole time. `prefill_tok_s`: all
    prompts over the time until the last of them had its first token (other streams decode meanwhile);
    `decode_tok_s`: the tokens that came after that moment over their time, 0 when none did."""
    started = timelines[0].started
    end = max(t.tokens[-1] for t in timelines)
    filled = max(t.tokens[0] for t in timelines)
    output = sum(len(t.tokens) for t in timelines)
    after = sum(at > filled for t in timelines for at in t.tokens)
    prompts = input_len * len(timelines)
    return {
        "output_tok_s": round(output / (end - started), 2),
        "total_tok_s": round((prompts + output) / (end - started), 2),
        "prefill_tok_s": round(prompts / (filled - started), 2),
        "decode_tok_s": round(after / (end - filled), 2) if end > filled else 0.0,
        "ttft_ms": spread_ms([t.ttft for t in timelines]),
        "itl_ms": spread_ms([gap for t in timelines for gap in t.gaps]),
        "duration_s": round(end - started, 3),
    }
