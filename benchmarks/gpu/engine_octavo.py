"""Octavo's part of the engine check, by the same interface that scripts use: LLMEngine, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from engine_models import POSITIONS, model_folder
from engine_work import (
    DECODE,
    GAP,
    MEMORY,
    PAGES,
    PREFILL,
    REQUESTS,
    STREAMS,
    Figure,
    Scene,
    decode_limit,
    requests_limit,
)
from measure import elapsed
from sizes import Model
from waits import idle_between_launches, traced

from octavo import LLMEngine, SamplingParams
from octavo.client.offline import TokenStream
from octavo.engine.stats import stats

BLOCK = 16
"""Tokens of a KV page."""
UTILIZATION = 0.9
"""The share of memory that an engine may use unless told otherwise."""


@contextmanager
def opened(scene: Scene, name: str, **options: Any) -> Iterator[LLMEngine]:
    """An engine over random weights that were made on the device."""
    amount = scene.amount
    values: dict[str, Any] = {
        "device": scene.device, "dtype": "bfloat16", "load_format": "dummy", "prefix_cache": False,
        "block_size": BLOCK, "max_model_len": min(POSITIONS, amount.prefill + 1024), "seed": 0,
        "max_num_seqs": max(amount.requests, *amount.rows), "max_num_batched_tokens": max(amount.prefill, 16),
        "kv_cache_memory": amount.kv_pages,
    }  # fmt: skip
    with LLMEngine(str(model_folder(scene, name)), **{**values, **options}) as engine:
        yield engine
    if scene.device != "cpu":
        torch.cuda.empty_cache()


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def start(scene: Scene, engine: LLMEngine, model: Model, rows: int, tokens: int) -> list[TokenStream]:
    """So many streams, each with its first token."""
    prompts = [scene.prompt(model, scene.amount.prompt) for _ in range(rows)]
    streams = [engine.stream(prompt, greedy(tokens)) for prompt in prompts]
    for stream in streams:
        next(stream)
    return streams


def close(streams: list[TokenStream]) -> None:
    for stream in streams:
        stream.close()


def decode(scene: Scene, engine: LLMEngine, name: str, rows: int) -> Figure:
    """Tokens a second of streams that have begun, median of the repeats."""
    model, amount = scene.model(name), scene.amount
    seconds = []
    for _ in range(amount.repeats):
        streams = start(scene, engine, model, rows, amount.output)
        began = time.perf_counter()
        for stream in streams:
            stream.output()
        seconds.append(time.perf_counter() - began)
    steps = amount.output - 1
    figure = Figure(DECODE if rows == 1 else STREAMS.format(rows), name, "tok/s", None)
    figure.value = rows * steps / median(seconds)
    figure.details = {"prompt": amount.prompt, "output": amount.output, "seconds": seconds}
    if scene.rates:
        context = rows * (amount.prompt + amount.output // 2)
        least, figure.bound = decode_limit(model, rows, context, scene.rates)
        figure.limit = rows / least
    return figure


def prefill(scene: Scene, engine: LLMEngine, name: str) -> Figure:
    """Tokens a second from the request to its first token, median of the repeats."""
    model, length = scene.model(name), scene.amount.prefill
    seconds = []
    for _ in range(scene.amount.repeats + 1):
        prompt = scene.prompt(model, length)
        began = time.perf_counter()
        next(engine.stream(prompt, greedy(1)))
        seconds.append(time.perf_counter() - began)
    figure = Figure(PREFILL.format(length), name, "tok/s", length / median(seconds[1:]), bound="matmul")
    if scene.rates:
        figure.limit = length / (model.prefill_operations(length) / scene.rates.matmul)
    return figure


def requests(scene: Scene, engine: LLMEngine, name: str) -> Figure:
    """Output tokens a second of many requests given at once, from the first to the end of the last."""
    model, lengths = scene.model(name), scene.lengths()
    prompts = [scene.prompt(model, prompt) for prompt, _ in lengths]
    engine.generate(prompts, greedy(4))
    began = time.perf_counter()
    found = engine.generate(prompts, [greedy(output) for _, output in lengths])
    seconds = time.perf_counter() - began
    tokens = sum(output for _, output in lengths)
    assert sum(len(output.token_ids) for output in found) == tokens
    figure = Figure(REQUESTS.format(len(lengths)), name, "tok/s", tokens / seconds, bound="memory")
    figure.details = {"prompts": scene.amount.prompts, "outputs": scene.amount.outputs, "tokens": tokens}
    if scene.rates:
        figure.limit = tokens / requests_limit(model, lengths, scene.rates)
    return figure


def memory(scene: Scene, engine: LLMEngine, name: str) -> Figure:
    """What all processes use of the GPU, of the share that they may: whether the plan of it came true."""
    figure = Figure(MEMORY, name, "of what it may", None)
    if scene.device != "cpu":
        free, total = torch.cuda.mem_get_info()
        figure.value = (total - free) / (UTILIZATION * total)
        figure.details = {"free_bytes": free, "total_bytes": total, "pages": engine.info.num_blocks}
    return figure


def replay_of(engine: LLMEngine, rows: int) -> Callable[[], None]:
    """Gives the device the graphs of a decode step of the rows that run now, and nothing else. The rows move on there,
    and not on the host: whatever runs has to be closed afterwards."""
    graphs = engine._engine._executor._worker._runner._steps._graphs
    forward, sample = graphs._pairs[graphs._size(rows)]

    def replay() -> None:
        forward.replay()
        sample.replay()

    return replay


def gap(scene: Scene, engine: LLMEngine, name: str, rows: int, trace: bool = False) -> Figure:
    """The share of a decode step that is not the device's: what a step lasts, compared with what its graphs last when
    they are replayed without a host in between. `trace`: also the idle time that a profiler sees."""
    steps = scene.amount.gap_steps
    streams = start(scene, engine, scene.model(name), rows, 4 * steps + 64)
    first = streams[0]

    def some(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            next(first)
        return (time.perf_counter() - began) / count

    figure = Figure(GAP.format(rows), name, "of the step", None)
    try:
        some(8)
        whole = min(some(steps), some(steps))
        if scene.device == "cpu":
            return figure
        figure.details = {"step_us": whole * 1e6}
        if trace:
            idle, span = idle_between_launches(traced(lambda: some(steps)), skip=0.2)
            figure.details["idle_in_trace"] = idle / span if span else None
        replay = replay_of(engine, rows)
        alone = min(elapsed(lambda: [replay() for _ in range(steps)]) for _ in range(2)) / steps
        figure.details["device_step_us"] = alone * 1e6
        figure.value = max(1 - alone / whole, 0.0)
        return figure
    finally:
        close(streams)


def pages(scene: Scene, name: str) -> Figure:
    """The share of the KV pages' room that holds tokens while more requests come than there is room for: the median
    over the time in which some wait. One page more than those in use is paid for, the padding's."""
    model, amount = scene.model(name), scene.amount
    size, half = amount.page_tokens * model.kv_bytes, amount.page_longest // 2
    filled: list[float] = []
    with opened(scene, name, kv_cache_memory=f"{size}b", max_model_len=amount.page_longest) as engine:
        scheduler = engine._engine._loop._scheduler
        room = (engine.info.num_blocks + (scene.device != "cpu")) * BLOCK
        prompts = [scene.prompt(model, half - i % 7) for i in range(amount.requests)]
        streams = [engine.stream(prompt, greedy(half)) for prompt in prompts]
        for stream in streams:
            for _ in stream:
                if stats(scheduler, 0.0).num_waiting:
                    filled.append(sum(request.num_computed for request in scheduler._planner.running) / room)
    figure = Figure(PAGES, name, "of the room", median(filled))
    figure.details = {"pages": room // BLOCK, "page_tokens": BLOCK, "requests": len(prompts), "most": max(filled)}
    return figure


def llama_1b(scene: Scene) -> Iterator[Callable[[], Figure]]:
    name = "Llama-3.2-1B"
    with opened(scene, name) as engine:
        yield lambda: decode(scene, engine, name, 1)
        yield lambda: prefill(scene, engine, name)
        yield lambda: requests(scene, engine, name)
        every = scene.amount.rows
        for rows in every:
            yield lambda rows=rows: gap(scene, engine, name, rows, trace=rows in (every[0], every[-1]))


def llama_8b(scene: Scene) -> Iterator[Callable[[], Figure]]:
    name = "Llama-3.1-8B"
    with opened(scene, name) as engine:
        yield lambda: decode(scene, engine, name, 1)
        yield lambda: decode(scene, engine, name, scene.amount.streams)
        yield lambda: memory(scene, engine, name)


def qwen(scene: Scene) -> Iterator[Callable[[], Figure]]:
    name = "Qwen3-0.6B"
    with opened(scene, name) as engine:
        yield lambda: requests(scene, engine, name)
        yield lambda: decode(scene, engine, name, 1)
        yield lambda: gap(scene, engine, name, scene.amount.rows[-1])
    yield lambda: pages(scene, name)
