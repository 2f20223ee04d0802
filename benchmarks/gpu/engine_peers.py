"""Transformers' part of the engine check: the same models and amounts, by `generate` with a static cache: it compiles
the steps after the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from engine_models import config, family
from engine_work import DECODE, PREFILL, REQUESTS, STREAMS, Figure, Scene
from torch import Tensor

ENGINE = "transformers"


class Clock:
    """A logits processor that notes when each token's logits were there, by the device's clock where it has one."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._device == "cpu":
            self._marks.append(time.perf_counter())
        else:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.mark()
        return scores

    def seconds(self, first: int, last: int) -> float:
        """Between two marks."""
        if self._device == "cpu":
            return float(self._marks[last] - self._marks[first])
        torch.cuda.synchronize()
        return float(self._marks[first].elapsed_time(self._marks[last])) / 1e3


@contextmanager
def opened(scene: Scene, name: str) -> Iterator[Any]:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    found = AutoConfig.for_model(**config(scene.model(name), family(name)))
    with torch.device(scene.device):
        model = AutoModelForCausalLM.from_config(found, dtype=torch.bfloat16).eval()
    try:
        yield model
    finally:
        del model
        if scene.device != "cpu":
            torch.cuda.empty_cache()


def make_cache(model: Any, room: int) -> Any:
    """Of `room` tokens; kept over the runs, so that graphs of its memory are."""
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=room)


def generate(scene: Scene, model: Any, inputs: tuple[Tensor, Tensor], output: int, cache: Any) -> Clock:
    """Marks: before, then when the logits of each of `output` tokens were there. inputs: ids and mask."""
    from transformers import LogitsProcessorList

    clock = Clock(scene.device)
    cache.reset()
    clock.mark()
    model.generate(
        inputs[0], attention_mask=inputs[1], past_key_values=cache, max_new_tokens=output, min_new_tokens=output,
        do_sample=False, pad_token_id=0, logits_processor=LogitsProcessorList([clock]), disable_compile=scene.dry,
    )  # fmt: skip
    return clock


def rows_of(scene: Scene, name: str, rows: int, length: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([scene.prompt(scene.model(name), length) for _ in range(rows)], device=scene.device)
    return ids, torch.ones_like(ids)


def decode(scene: Scene, model: Any, name: str, rows: int) -> Figure:
    amount = scene.amount
    seconds, cache = [], make_cache(model, amount.prompt + 512)
    for run in range(1 + amount.repeats):
        output = amount.output if run else min(amount.output, 8)  # the first compiles
        clock = generate(scene, model, rows_of(scene, name, rows, amount.prompt), output, cache)
        seconds.append(clock.seconds(1, output))
    steps = amount.output - 1
    value = rows * steps / median(seconds[1:])
    figure = Figure(DECODE if rows == 1 else STREAMS.format(rows), name, "tok/s", value, engine=ENGINE)
    figure.details = {"prompt": amount.prompt, "output": amount.output, "seconds": seconds[1:]}
    return figure


def prefill(scene: Scene, model: Any, name: str) -> Figure:
    length = scene.amount.prefill
    seconds, cache = [], make_cache(model, length + 1)
    for _ in range(1 + scene.amount.repeats):
        clock = generate(scene, model, rows_of(scene, name, 1, length), 1, cache)
        seconds.append(clock.seconds(0, 1))
    return Figure(PREFILL.format(length), name, "tok/s", length / median(seconds[1:]), engine=ENGINE)


def requests(scene: Scene, model: Any, name: str) -> Figure:
    """One batch, prompts padded to the longest; it goes on until the longest output is there. Tokens beyond what a
    request asked for do not count."""
    lengths = scene.lengths()
    longest, most = max(prompt for prompt, _ in lengths), max(output for _, output in lengths)
    ids, mask = rows_of(scene, name, len(lengths), longest)
    for row, (prompt, _) in enumerate(lengths):
        ids[row, : longest - prompt] = 0
        mask[row, : longest - prompt] = 0
    cache = make_cache(model, scene.amount.prompts[1] + max(scene.amount.outputs[1], 1024 * (not scene.dry)))
    generate(scene, model, (ids, mask), min(4, most), cache)
    clock = generate(scene, model, (ids, mask), most, cache)
    tokens = sum(output for _, output in lengths)
    value = tokens / clock.seconds(0, most)
    return Figure(REQUESTS.format(len(lengths)), name, "tok/s", value, engine=ENGINE, details={"tokens": tokens})


def llama_1b(scene: Scene) -> Iterator[Callable[[], Figure]]:
    name = "Llama-3.2-1B"
    with opened(scene, name) as model:
        yield lambda: decode(scene, model, name, 1)
        yield lambda: prefill(scene, model, name)


def llama_8b(scene: Scene) -> Iterator[Callable[[], Figure]]:
    name = "Llama-3.1-8B"
    with opened(scene, name) as model:
        yield lambda: decode(scene, model, name, scene.amount.streams)
        yield lambda: decode(scene, model, name, 1)


def qwen(scene: Scene) -> Iterator[Callable[[], Figure]]:
    name = "Qwen3-0.6B"
    with opened(scene, name) as model:
        yield lambda: requests(scene, model, name)
