"""Runs random prompts through an engine in this process and notes when each token came. Used by latency and throughput.

Random token ids, greedy, ignore_eos, no prefix cache: nothing depends on what the model says.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from octavo.client.base import Prompt
from octavo.client.local import IDLE_S, LocalEngine
from octavo.config.engine import EngineConfig
from octavo.errors import ConfigError
from octavo.executor.base import Executor
from octavo.types import SamplingParams

SEED = 0


@dataclass
class Timeline:
    """One request: when it was given and when its tokens came, in seconds on one clock."""

    started: float
    tokens: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        return self.tokens[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Seconds between neighbouring tokens."""
        return [b - a for a, b in zip(self.tokens, self.tokens[1:], strict=False)]


class Bench:
    """An engine for measuring. Raises OctavoError when the model cannot be loaded or lengths do not fit it."""

    def __init__(self, config: EngineConfig, input_len: int, output_len: int, executor: Executor | None = None) -> None:
        self.config = msgspec.structs.replace(config, prefix_cache=False)
        self.engine = LocalEngine(self.config, executor)
        self._random = random.Random(SEED)
        self._input_len, self._output_len = input_len, output_len
        if input_len + output_len > self.engine.info.max_model_len:
            self.close()
            raise ConfigError(
                f"--input-len {input_len} + --output-len {output_len} is more than the context of "
                f"{self.engine.info.max_model_len} tokens; lower one of them"
            )

    def close(self) -> None:
        self.engine.leave()
        self.engine.shutdown()

    def run(
        self,
        num_prompts: int,
        *,
        input_len: int | None = None,
        output_len: int | None = None,
        on_tokens: Callable[[int], None] = lambda count: None,
    ) -> list[Timeline]:
        """Gives all prompts at once and turns the engine until they have ended. `input_len`, `output_len`: lengths
        other than the usual. `on_tokens`: told of new tokens."""
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=output_len or self._output_len)
        prepared = [self.engine.prepare(self._prompt(input_len or self._input_len), params) for _ in range(num_prompts)]
        started = time.perf_counter()
        timelines = {request: Timeline(started) for request in prepared}
        for request in prepared:
            self.engine.start(request)
        left = set(prepared)
        while left:
            touched = self.engine.dispatch(self.engine.turn(IDLE_S))
            now = time.perf_counter()
            for request in touched:
                if request.error is not None:
                    raise request.error
                count = sum(len(delta.token_ids) for delta in request.deltas)
                request.deltas.clear()
                timelines[request].tokens += [now] * count
                on_tokens(count)
                if request.ended:
                    left.discard(request)
        return list(timelines.values())

    def _prompt(self, length: int) -> Prompt:
        tokenizer = self.engine.tokenizer
        ids: list[int] = []
        while len(ids) < length:
            token_id = self._random.randrange(tokenizer.vocab_size)
            if token_id not in tokenizer.special_ids:
                ids.append(token_id)
        return Prompt(token_ids=ids)
