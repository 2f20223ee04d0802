"""The generations of one HTTP request: started together, read as one stream, closed together.

Called by the chat and completions handlers inside a watch. Invariant: however the block ends, every generation is
closed, so nothing runs in the engine for a request that nobody waits for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from octavo.client.base import Client, Generation, Prompt
from octavo.errors import ApiError, EngineError
from octavo.server.errors import ClientGone
from octavo.server.metrics import ServerMetrics
from octavo.types import Delta, Metrics, SamplingParams, TokenLogprobs

_STARTS_PER_TURN = 16
_MERGE_BUFFER = 256
"""Deltas of several prompts that wait for a slow reader before the pumps wait too."""


class Work:
    """Prompts being generated with the same parameters. Iterating gives (prompt index, delta) in order of arrival."""

    def __init__(self, generations: list[Generation], metrics: ServerMetrics, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self._generations = generations
        self._metrics = metrics
        self._started = time.perf_counter()
        self._last: dict[tuple[int, int], float] = {}
        self._open = set(range(len(generations)))
        self._pumps: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls, client: Client, prompts: Sequence[Prompt], params: SamplingParams, metrics: ServerMetrics
    ) -> Work:
        """Raises the ApiError of the first prompt that is refused; then none is left running."""
        work = cls([], metrics, sum(len(prompt.token_ids) for prompt in prompts))
        try:
            for index, prompt in enumerate(prompts):
                if index % _STARTS_PER_TURN == _STARTS_PER_TURN - 1:
                    await asyncio.sleep(0)  # other streams keep their pace
                work._generations.append(await client.generate(prompt, params))
        except BaseException as error:
            await work.aclose(error)
            raise
        work._open = set(range(len(prompts)))
        return work

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        try:
            if len(self._generations) == 1:
                async for delta in self._generations[0]:
                    self._observe(0, delta)
                    yield 0, delta
                self._ended(0)
                return
            async for index, delta in self._merged():
                self._observe(index, delta)
                yield index, delta
        except BaseException as error:
            await self.aclose(error)
            raise

    async def aclose(self, error: BaseException | None = None) -> None:
        """Closes what still runs; counts it as aborted, or failed when `error` is an ApiError."""
        for pump in self._pumps:
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)
            self._pumps.clear()
        if self._open:
            self._open.clear()
            if isinstance(error, ApiError) and not isinstance(error, ClientGone):
                self._metrics.failed.labels(self._metrics.model, error.code or error.type).inc()
            else:
                self._metrics.aborted.labels(self._metrics.model).inc()
        for generation in self._generations:
            await generation.aclose()

    @property
    def metrics(self) -> list[Metrics]:
        return [generation.metrics for generation in self._generations]

    def prompt_logprobs(self, index: int) -> list[TokenLogprobs | None] | None:
        return self._generations[index].prompt_logprobs

    async def _merged(self) -> AsyncIterator[tuple[int, Delta]]:
        queue: asyncio.Queue[tuple[int, Delta | BaseException | None]] = asyncio.Queue(_MERGE_BUFFER)

        async def pump(index: int, generation: Generation) -> None:
            try:
                async for delta in generation:
                    await queue.put((index, delta))
                await queue.put((index, None))
            except Exception as error:
                await queue.put((index, error))

        self._pumps = [asyncio.create_task(pump(i, g)) for i, g in enumerate(self._generations)]
        while self._open:
            index, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                self._ended(index)
            else:
                yield index, item

    def _observe(self, index: int, delta: Delta) -> None:
        if not delta.token_ids:
            if delta.finish_reason is not None:
                self._finished(delta)
            return
        now, model = time.perf_counter(), self._metrics.model
        key = (index, delta.index)
        last = self._last.get(key)
        if last is None:
            self._metrics.ttft.labels(model).observe(now - self._started)
        else:
            self._metrics.itl.labels(model).observe((now - last) / len(delta.token_ids))
        self._last[key] = now
        if delta.finish_reason is not None:
            self._finished(delta)

    def _finished(self, delta: Delta) -> None:
        if delta.finish_reason == "abort":
            raise EngineError("the engine ended this request before it was complete")
        self._metrics.finished.labels(self._metrics.model, delta.finish_reason).inc()

    def _ended(self, index: int) -> None:
        self._open.discard(index)
        self._metrics.ended(self._generations[index].metrics, time.perf_counter() - self._started)
