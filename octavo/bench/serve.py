"""`octavo bench serve`: load on any OpenAI-compatible server, measured from the client's side.

Streams POST /v1/completions with random token ids, greedy, ignore_eos, on connections of bench/http.py. Most events are
counted without reading their JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from octavo.bench.http import Server
from octavo.bench.report import check_writable, report, spread_ms
from octavo.errors import ConfigError

SEED = 0
TIMEOUT_S = 600.0


@dataclass
class Sample:
    """One request, in seconds. `error` is set when it did not end well."""

    started: float
    arrivals: list[float] = field(default_factory=list)
    output_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Load:
    """`request_rate`: requests per second, arriving at random (Poisson); None: as fast as `concurrency` allows.
    `concurrency`: most requests at once; None: no limit. `vocab_size`: token ids are drawn from 100 up to it."""

    num_prompts: int
    input_len: int
    output_len: int
    concurrency: int | None = 32
    request_rate: float | None = None
    vocab_size: int = 10_000


async def served_model(server: Server) -> str:
    """The first model that the server lists. Raises ConfigError when it does not answer."""
    lines: list[bytes] = []
    try:
        await server.exchange("GET", "/v1/models", lines.append)
        found = json.loads(b"".join(lines))
        return str(found["data"][0]["id"])
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"the server does not say which models it has: {error}; give --model") from None


async def one_request(server: Server, model: str, prompt: list[int], output_len: int) -> Sample:
    """Streams one completion; whatever goes wrong is in the sample."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    events = _Events(Sample(time.perf_counter()))
    try:
        await asyncio.wait_for(server.exchange("POST", "/v1/completions", events.on_line, body), TIMEOUT_S)
        if not events.done:
            events.sample.error = "the stream ended without [DONE]"
    except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
        events.sample.error = f"{type(error).__name__}: {error}"
    return events.sample


class _Events:
    """Reads the lines of one stream into its sample."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.done = False

    def on_line(self, line: bytes) -> None:
        """Raises ConnectionError for an error event, ValueError for what is no JSON."""
        if not line.startswith(b"data:"):
            return
        _, key, text = line.partition(b'"text":"')
        if key and text[:1] != b'"' and b'"usage":{' not in line:  # a chunk with some text, as nearly all are
            self.sample.arrivals.append(time.perf_counter())
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            raise ConnectionError(str(event["error"].get("message", event["error"])))
        if usage := event.get("usage"):
            self.sample.output_tokens = usage["completion_tokens"]
        if any(choice.get("text") for choice in event.get("choices", ())):
            self.sample.arrivals.append(time.perf_counter())


async def run_load(server: Server, model: str, load: Load, progress: Progress | None = None) -> list[Sample]:
    """All requests of the load, in order."""
    rng = random.Random(SEED)
    gate = asyncio.Semaphore(load.concurrency or load.num_prompts)
    task = None if progress is None else progress.add_task("", total=load.num_prompts)

    async def one(prompt: list[int]) -> Sample:
        async with gate:
            sample = await one_request(server, model, prompt, load.output_len)
        if progress is not None and task is not None:
            progress.advance(task)
        return sample

    running: list[asyncio.Task[Sample]] = []
    for number in range(load.num_prompts):
        if number and load.request_rate is not None:
            await asyncio.sleep(rng.expovariate(load.request_rate))
        prompt = [rng.randrange(100, load.vocab_size) for _ in range(load.input_len)]
        running.append(asyncio.create_task(one(prompt)))
    return await asyncio.gather(*running)


def serve_figures(samples: list[Sample], duration: float, input_len: int) -> dict[str, Any]:
    """`ttft_ms`: until the first text; `itl_ms`: between neighbouring chunks of text; rates over the whole time."""
    good = [s for s in samples if s.error is None]
    heard = [s for s in good if s.arrivals]
    gaps = [b - a for s in heard for a, b in zip(s.arrivals, s.arrivals[1:], strict=False)]
    output = sum(s.output_tokens or len(s.arrivals) for s in good)
    after = sum((s.output_tokens or len(s.arrivals)) - 1 for s in heard)
    decoding = sum(s.arrivals[-1] - s.arrivals[0] for s in heard)
    return {
        "requests_ok": len(good),
        "errors": len(samples) - len(good),
        "request_s": round(len(good) / duration, 3),
        "output_tok_s": round(output / duration, 2),
        "prefill_tok_s": round(input_len * len(good) / duration, 2),
        "decode_tok_s": round(after / decoding, 2) if decoding > 0 else 0.0,
        "ttft_ms": spread_ms([s.arrivals[0] - s.started for s in heard]),
        "itl_ms": spread_ms(gaps),
        "duration_s": round(duration, 3),
    }


def run_serve(
    url: str,
    load: Load,
    *,
    model: str | None = None,
    api_key: str | None = None,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """One warm-up request, then the load; → the figures. Raises ConfigError when the server cannot be used at all or
    not one request ended well; single failures are counted and the first is shown."""
    check_writable(json_file)
    console = Console()
    figures, name, first_error = uvloop.run(_measure(Server(url, api_key), load, model, console))
    if first_error is not None:
        console.print(f"first error: {first_error}", style="red", markup=False)
    shown = {"model": name, **{k: getattr(load, k) for k in load.__dataclass_fields__}}
    report("serve", figures, shown, config=None, engine=None, json_file=json_file, console=console)
    return figures


async def _measure(
    server: Server, load: Load, model: str | None, console: Console
) -> tuple[dict[str, Any], str, str | None]:
    name = model or await served_model(server)
    warm = await run_load(server, name, Load(1, load.input_len, load.output_len, vocab_size=load.vocab_size))
    if warm[0].error is not None:
        raise ConfigError(f"the server refused the first request: {warm[0].error}")
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        started = time.perf_counter()
        samples = await run_load(server, name, load, progress)
        duration = time.perf_counter() - started
    errors = [s.error for s in samples if s.error is not None]
    if len(errors) == len(samples):
        raise ConfigError(f"not one request ended well; the first: {errors[0]}")
    return serve_figures(samples, duration, load.input_len), name, errors[0] if errors else None
