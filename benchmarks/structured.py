"""What a grammar costs: tokens per second of the demo model with and without one, 1 and 8 streams, greedy.

    python benchmarks/structured.py [MODEL] [--tokens 128] [--threads N] [--json benchmarks/results/structured.json]

Each kind of request runs so many tokens; rounds of all kinds alternate, the best of each counts. First tokens, and so
the compiling, are timed apart. `cpu_ms` is the time of a processor that the engine's thread took for a step: with
--threads 1 it is all but the masks, which are computed beside it, and does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

from octavo import LLMEngine, Message, SamplingParams, StructuredOutputs

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "city": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "city", "age"],
    "additionalProperties": False,
}
KINDS: dict[str, StructuredOutputs | None] = {
    "free": None,
    "any text": StructuredOutputs(regex=r"(.|\n){2000,}"),
    "words": StructuredOutputs(regex=r"([a-z]+ ){600,}"),
    "json schema": StructuredOutputs(json={"type": "array", "items": PERSON, "minItems": 100}),
    "free, by parts": None,
    "json, by parts": StructuredOutputs(json={"type": "array", "items": PERSON, "minItems": 100}),
}
PARTED = "by parts"
"""Kinds whose sampling wants more than the native step does by itself."""


class Measured(NamedTuple):
    tok_s: float
    """After the first tokens."""
    ttft_ms: float
    cpu_ms: float


def measure(engine: LLMEngine, kind: str, streams: int, tokens: int) -> Measured:
    conversations = [[Message("user", f"Write {n + 5} long stories about people.")] for n in range(streams)]
    params = SamplingParams(
        temperature=0.0,
        max_tokens=tokens,
        ignore_eos=True,
        structured_outputs=KINDS[kind],
        presence_penalty=0.1 if PARTED in kind else 0.0,
    )
    began = time.thread_time()
    outputs = engine.chat(conversations, params)
    cpu = (time.thread_time() - began) / tokens * 1e3
    assert all(len(output.token_ids) == tokens for output in outputs), f"{kind}: ended early"
    decode = max(output.metrics.decode_ms for output in outputs)
    first = statistics.mean(output.metrics.time_to_first_token_ms for output in outputs)
    return Measured(streams * (tokens - 1) / decode * 1e3, first, cpu)


def best(runs: list[Measured]) -> Measured:
    return Measured(
        round(max(run.tok_s for run in runs), 1),
        round(min(run.ttft_ms for run in runs), 1),
        round(min(run.cpu_ms for run in runs), 3),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads = {} if options.threads is None else {"threads": options.threads}
    result: dict[str, object] = {"model": options.model, "tokens": options.tokens, "date": time.strftime("%Y-%m-%d")}
    with LLMEngine(options.model, max_model_len=1024, prefix_cache=False, **threads) as engine:
        began = time.perf_counter()
        measure(engine, "words", 1, 2)
        result["first_grammar_ms"] = round((time.perf_counter() - began) * 1e3, 1)
        for streams in (1, 8):
            found: dict[str, list[Measured]] = {kind: [] for kind in KINDS}
            for _ in range(options.rounds):
                for kind in KINDS:
                    found[kind].append(measure(engine, kind, streams, options.tokens))
            table = {kind: best(runs) for kind, runs in found.items()}
            for kind, each in table.items():
                speed, cpu = each.tok_s / table["free"].tok_s, each.cpu_ms / table["free"].cpu_ms
                print(
                    f"{streams} streams, {kind:17} {each.tok_s:7.1f} tok/s {speed:7.1%}   ttft {each.ttft_ms:6.1f} ms"
                    f"   cpu {each.cpu_ms:6.2f} ms a step {cpu:7.1%}"
                )
            result[f"streams_{streams}"] = {kind: each._asdict() for kind, each in table.items()}
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
