"""`octavo bench serve`: load on any OpenAI-compatible server, measured from the client's side.

Streams POST /v1/completions with random token ids, greedy, ignore_eos. Raw asyncio with just enough HTTP/1.1, so that
the client costs little beside the server it shares a machine with.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from octavo.bench.report import check_writable, report, spread_ms
from octavo.errors import ConfigError

SEED = 0
TIMEOUT_S = 600.0
MAX_LINE = 1 << 20


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


class Server:
    """Where requests go. Raises ConfigError for a URL that is not http(s)."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not a URL; write it as http://127.0.0.1:8000")
        self._tls = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._netloc = parts.netloc
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._api_key = api_key

    async def lines(self, method: str, path: str, body: dict[str, Any] | None = None) -> AsyncIterator[bytes]:
        """Lines of the answer's body as they come. Raises ConnectionError with the server's words on a status that
        is not 200, OSError, asyncio.TimeoutError, EOFError."""
        reader, writer = await asyncio.open_connection(
            self._host, self._port, ssl=True if self._tls else None, limit=MAX_LINE
        )
        try:
            content = b"" if body is None else json.dumps(body).encode()
            head = [f"{method} {self._base}{path} HTTP/1.1", f"Host: {self._netloc}", "Connection: close"]
            head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
            head += [f"Authorization: Bearer {self._api_key}"] if self._api_key else []
            writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + content)
            status, chunked = await _read_head(reader)
            parts = _chunks(reader) if chunked else _rest(reader)
            if status != 200:
                text = b"".join([part async for part in parts]).decode(errors="replace")
                raise ConnectionError(f"HTTP {status}: {text[:300].strip()}")
            rest = b""
            async for part in parts:
                *whole, rest = (rest + part).split(b"\n")
                for line in whole:
                    yield line.rstrip(b"\r")
            if rest:
                yield rest
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """→ (status, whether the body comes in chunks)."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    try:
        return int(head[0].split()[1]), fields.get("transfer-encoding", "").lower() == "chunked"
    except (IndexError, ValueError):
        raise ConnectionError(f"not HTTP: {head[0][:80]!r}") from None


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _rest(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while part := await reader.read(1 << 16):
        yield part


async def served_model(server: Server) -> str:
    """The first model that the server lists. Raises ConfigError when it does not answer."""
    try:
        found = json.loads(b"".join([line async for line in server.lines("GET", "/v1/models")]))
        return str(found["data"][0]["id"])
    except (OSError, EOFError, ValueError, LookupError, TypeError, asyncio.LimitOverrunError) as error:
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
    sample = Sample(time.perf_counter())
    try:
        done = await asyncio.wait_for(_stream(server, body, sample), TIMEOUT_S)
        if not done:
            sample.error = "the stream ended without [DONE]"
    except (OSError, EOFError, ValueError, asyncio.TimeoutError, asyncio.LimitOverrunError) as error:
        sample.error = f"{type(error).__name__}: {error}"
    return sample


async def _stream(server: Server, body: dict[str, Any], sample: Sample) -> bool:
    """→ whether the stream came to its proper end."""
    async with aclosing(server.lines("POST", "/v1/completions", body)) as lines:  # type: ignore[type-var]
        async for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return True
            event = json.loads(data)
            if "error" in event:
                raise ConnectionError(str(event["error"].get("message", event["error"])))
            if usage := event.get("usage"):
                sample.output_tokens = usage["completion_tokens"]
            if any(choice.get("text") for choice in event.get("choices", ())):
                sample.arrivals.append(time.perf_counter())
    return False


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
    figures, name, first_error = asyncio.run(_measure(Server(url, api_key), load, model, console))
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
