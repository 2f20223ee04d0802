"""`octavo bench latency`: one stream at a time. How fast a prompt is read and how fast an answer is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from octavo.bench.driver import Bench, Timeline
from octavo.bench.report import check_writable, percentile, report, spread_ms
from octavo.config.engine import EngineConfig
from octavo.executor.base import Executor


def run_latency(
    config: EngineConfig,
    input_len: int,
    output_len: int,
    iterations: int,
    json_file: Path | None = None,
    *,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """One warm-up, then `iterations` measured runs; → the figures, which are medians over the runs."""
    check_writable(json_file)
    console = Console()
    with console.status("loading the model…"):
        bench = Bench(config, input_len, output_len, executor)
    try:
        with console.status("warming up…") as status:
            bench.run(1)
            timelines = []
            for number in range(iterations):
                status.update(f"run {number + 1} of {iterations}…")
                timelines += bench.run(1)
        figures = latency_figures(timelines, input_len)
        load = {"input_len": input_len, "output_len": output_len, "iterations": iterations}
        report(
            "latency",
            figures,
            load,
            config=bench.config,
            engine=bench.engine.info,
            json_file=json_file,
            console=console,
        )
        return figures
    finally:
        bench.close()


def latency_figures(timelines: list[Timeline], input_len: int) -> dict[str, Any]:
    """`prefill_tok_s`: prompt tokens over the time to the first token; `decode_tok_s`: tokens after the first over
    their time; `output_tok_s`: all output over the whole time."""
    prefill = [input_len / t.ttft for t in timelines]
    decode = [len(t.gaps) / sum(t.gaps) for t in timelines if t.gaps]
    output = [len(t.tokens) / (t.tokens[-1] - t.started) for t in timelines]
    return {
        "prefill_tok_s": round(percentile(prefill, 50), 2),
        "decode_tok_s": round(percentile(decode, 50), 2),
        "output_tok_s": round(percentile(output, 50), 2),
        "ttft_ms": spread_ms([t.ttft for t in timelines]),
        "itl_ms": spread_ms([gap for t in timelines for gap in t.gaps]),
    }
