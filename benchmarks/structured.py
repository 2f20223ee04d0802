"""What a grammar costs: tokens per second of the demo model with and without one, 1 and 8 streams, greedy.

    python benchmarks/structured.py [MODEL] [--tokens 128] [--threads N] [--json benchmarks/results/structured.json]

Each kind of request runs so many tokens; rounds of all kinds alternate, the best of each counts. First tokens, and so
the compiling, are timed apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from octavo import LLMEngine, SamplingParams, StructuredOutputs
from octavo.client.base import Prompt

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
    "json, by parts": StructuredOutputs(json={"type": "array", "items": PERSON, "minItems": 100}),
}
PARTED = "by parts"
"""Kinds whose sampling wants more than the native step does by itself."""


def measure(engine: LLMEngine, kind: str, streams: int, tokens: int) -> tuple[float, float]:
    """→ (tokens per second after the first ones, milliseconds to the first token)."""
    prompts: list[Prompt] = [
        engine._engine.chat_prompt([{"role": "user", "content": f"Write {n + 5} long stories about people."}])
        for n in range(streams)
    ]
    params = SamplingParams(
        temperature=0.0,
        max_tokens=tokens,
        ignore_eos=True,
        structured_outputs=KINDS[kind],
        presence_penalty=0.1 if PARTED in kind else 0.0,
    )
    outputs = engine.generate(prompts, params)
    assert all(len(output.token_ids) == tokens for output in outputs), f"{kind}: ended early"
    decode = max(output.metrics.decode_ms for output in outputs)
    first = statistics.mean(output.metrics.time_to_first_token_ms for output in outputs)
    return streams * (tokens - 1) / decode * 1e3, first


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
            found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
            for _ in range(options.rounds):
                for kind in KINDS:
                    found[kind].append(measure(engine, kind, streams, options.tokens))
            free = max(speed for speed, _ in found["free"])
            table = {}
            for kind, runs in found.items():
                speed, first = max(speed for speed, _ in runs), min(first for _, first in runs)
                table[kind] = {
                    "tok_s": round(speed, 1), "of_free": round(speed / free, 3), "ttft_ms": round(first, 1)
                }  # fmt: skip
                print(f"{streams} streams, {kind:15} {speed:8.1f} tok/s  {speed / free:6.1%}  ttft {first:6.1f} ms")
            result[f"streams_{streams}"] = table
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
