"""The generations of one HTTP request: started together, read as one stream, closed together.

Used inside a watch and as `async with work`. The client hands each delta over in the moment it comes; what the reader
has not taken yet is merged per choice. Invariant: however the block ends, every generation is closed, so that nothing
runs in the engine for a request that nobody waits for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType

import msgspec

from octavo.client.base import Client, Generation, Prompt
from octavo.client.generation import merged
from octavo.client.news import News
from octavo.errors import ApiError, EngineError, RequestError
from octavo.server.core.account import MAX_CHARGED, Account
from octavo.server.core.metrics import ServerMetrics
from octavo.types import Delta, Metrics, SamplingParams, TokenLogprobs

_STARTS_PER_TURN = 16
ENTRY_BYTES = 80
"""Of one log-probability in an answer: a token, its text, its bytes and a number."""

Arrived = tuple[int, Delta]
"""(prompt index, delta)."""


class Work:
    """Prompts being generated with the same parameters; hears of all of them (client.base.Listener)."""

    def __init__(
        self, metrics: ServerMetrics, prompts: Sequence[Prompt], params: SamplingParams, account: Account
    ) -> None:
        self.prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        self.prompt_ids = [prompt.token_ids for prompt in prompts]
        self._metrics = metrics
        self._tokens = metrics.tokens
        self._account = account
        account.params, account.model, account.num_open = params, metrics.model, len(prompts)
        self._params = params
        self._select = params.best_of is not None and params.best_of > params.n
        """Nothing comes before all candidates have ended."""
        self._started = time.perf_counter()
        self._prefilled: set[int] = set()
        self._generations: list[Generation] = []
        self._last: dict[tuple[int, int], float] = {}
        self._open = set(range(len(prompts)))
        self._arrived: list[Arrived] = []
        self._error: ApiError | None = None
        self._only_the_end = False
        self._news = News()

    @classmethod
    async def start(
        cls,
        client: Client,
        metrics: ServerMetrics,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        account: Account,
    ) -> Work:
        """Raises the ApiError of the first prompt that is refused; then none is left running."""
        params = _sized(client, prompts, params, account)
        if account.allowance is not None:
            params = account.allowance.admit(sum(len(prompt.token_ids) for prompt in prompts), len(prompts), params)
        work = cls(metrics, prompts, params, account)
        try:
            for index, prompt in enumerate(prompts):
                if index % _STARTS_PER_TURN == _STARTS_PER_TURN - 1:
                    await asyncio.sleep(0)  # other streams keep their pace
                generation = await work._generate(client, prompt)
                work._generations.append(generation)
                generation.follow(work, index)
        except BaseException:
            await work.aclose()
            raise
        return work

    async def _generate(self, client: Client, prompt: Prompt) -> Generation:
        prompt.request_id, prompt.owner = self._account.request_id, self._account.owner
        if prompt.grammar is None:
            return await client.generate(prompt, self._params)
        started = time.perf_counter()
        try:
            generation = await client.generate(prompt, self._params)
        except RequestError as error:
            if error.param == "grammar":
                self._metrics.checked(time.perf_counter() - started, refused=True)
            raise
        self._metrics.checked(time.perf_counter() - started, refused=False)
        return generation

    @property
    def ended(self) -> bool:
        """Everything has come and was taken."""
        return not self._open and not self._arrived and self._error is None

    @property
    def is_silent(self) -> bool:
        """There is nothing to take, and more will come."""
        return not self._arrived and self._error is None and bool(self._open)

    async def begin(self, seconds: float) -> None:
        """Until there is something to take, at most so long. Raises the ApiError of a failure before that."""
        timer = asyncio.get_running_loop().call_later(seconds, self._news.ring)
        try:
            if self.is_silent:
                await self._news.wait()
        finally:
            timer.cancel()
        self._check()

    async def wait(self) -> None:
        """Until `take` has something to give or to raise, or all has ended."""
        while self.is_silent:
            await self._news.wait()

    def take(self) -> list[Arrived]:
        """What has come since the last time, one delta per choice, in order of arrival. Raises the ApiError with which
        a prompt failed, once everything before it is taken."""
        arrived = self._arrived
        if not arrived:
            self._check()
            return arrived
        self._arrived = []
        return arrived if len(arrived) == 1 else _merged(arrived)

    async def finish(self, *, merge: bool = True) -> list[Arrived]:
        """Everything, one delta per choice in their order, or each as it came. Raises the ApiError with which a prompt
        failed."""
        self._only_the_end = True
        while self._open and self._error is None:
            await self._news.wait()
        if self._error is not None:
            raise self._error
        return sorted(self.take(), key=lambda come: (come[0], come[1].index)) if merge else self._arrived

    def _check(self) -> None:
        if self._error is not None and not self._arrived:
            raise self._error

    async def aclose(self) -> None:
        """Closes what still runs."""
        for index in sorted(self._open):
            if index < len(self._generations):
                self._account.metrics.append(self._generations[index].metrics)
        self._open.clear()
        for generation in self._generations:
            await generation.aclose()

    async def __aenter__(self) -> Work:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def metrics(self) -> list[Metrics]:
        return [generation.metrics for generation in self._generations]

    def prompt_logprobs(self, index: int) -> list[TokenLogprobs | None] | None:
        return self._generations[index].prompt_logprobs

    def embedding(self, index: int) -> bytes:
        """[hidden] f32, little-endian, of a prompt with `pooling`, once it has finished."""
        found = self._generations[index].embedding
        assert found is not None, "no embedding was asked for, or it has not come"
        return found

    # -- what the client says

    def on_delta(self, index: int, delta: Delta) -> None:
        if delta.token_ids:
            self._observe(index, delta)
        if delta.finish_reason == "abort":
            self.on_end(index, EngineError("the engine ended this request before it was complete"))
            return
        if delta.finish_reason is not None:
            self._metrics.finished.labels(self._metrics.model, delta.finish_reason).inc()
            self._account.finish_reasons.append(delta.finish_reason)
        self._arrived.append((index, delta))
        if not self._only_the_end:
            self._news.ring()

    def on_end(self, index: int, error: ApiError | None) -> None:
        if self._error is not None:
            return
        if error is not None:
            self._error = error
            self._news.ring()
            return
        if index in self._open:
            self._open.discard(index)
            self._ended(index)
        if not self._open:
            self._news.ring()

    def _observe(self, index: int, delta: Delta) -> None:
        now = time.perf_counter()
        key = (index, delta.index)
        last = self._last.get(key)
        if last is not None:
            self._tokens.observe(now - last, len(delta.token_ids))
        elif not self._select:
            self._began(index)
            self._tokens.first(now - self._started, len(delta.token_ids))
        self._last[key] = now

    def _began(self, index: int) -> None:
        """The prompt has been computed."""
        if index not in self._prefilled:
            self._prefilled.add(index)
            self._tokens.prompt += self._generations[index].metrics.prompt_tokens

    def _ended(self, index: int) -> None:
        metrics = self._generations[index].metrics
        self._began(index)
        if self._select:  # of the candidates only the best came, and at once
            self._tokens.first(metrics.time_to_first_token_ms / 1e3, metrics.completion_tokens)
        self._account.metrics.append(metrics)
        self._account.num_open -= 1
        self._metrics.ended(metrics, self._params, time.perf_counter() - self._started)


def _sized(client: Client, prompts: Sequence[Prompt], params: SamplingParams, account: Account) -> SamplingParams:
    """Charges the account with the log-probabilities that are gathered until the answer is whole; where the request
    leaves its length open, it ends when they are as many as it may have. Raises RequestError."""
    if params.prompt_logprobs is not None:
        tokens = sum(len(prompt.token_ids) for prompt in prompts)
        account.charge(tokens * (params.prompt_logprobs + 1) * ENTRY_BYTES, "prompt_logprobs")
    candidates = max(params.best_of or 0, params.n)
    if params.logprobs is None or (account.is_streamed and candidates == params.n):
        return params
    of_a_token = len(prompts) * candidates * (params.logprobs + 1) * ENTRY_BYTES
    if params.max_tokens is None:
        return msgspec.structs.replace(params, max_tokens=max(1, (MAX_CHARGED - account.charged) // of_a_token))
    most = params.max_tokens if client.info is None else min(params.max_tokens, client.info.max_model_len)
    account.charge(most * of_a_token, "logprobs")
    return params


def _merged(arrived: list[Arrived]) -> list[Arrived]:
    """One delta per choice."""
    by_choice: dict[tuple[int, int], list[Delta]] = {}
    for index, delta in arrived:
        by_choice.setdefault((index, delta.index), []).append(delta)
    return [(index, merged(deltas)) for (index, _), deltas in by_choice.items()]
