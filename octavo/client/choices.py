"""One request in a client: its prompt and the n (or best_of) choices that the engine generates for it.

Whoever reads it follows it. Transport-agnostic: no sockets, no loop; the ledger knows its choices as sequences.
Invariant: each choice ends with exactly one Delta that has a finish_reason, unless the request failed or was aborted.
"""

from __future__ import annotations

import time
from functools import partial

import msgspec

from octavo.client.base import Listener, Prompt
from octavo.client.ledger import Sequence
from octavo.client.stream import ChoiceStream
from octavo.errors import ApiError
from octavo.text.stops import StopStrings
from octavo.text.tokenizer import Tokenizer
from octavo.types import CompletionOutput, Delta, Metrics, RequestOutput, SamplingParams, TokenLogprobs
from octavo.wire.messages import Add, TokenOutput


class Choice(ChoiceStream):
    """One sequence of a request: what it was sent as, and what has come of it."""

    def __init__(self, prompt: Prompt, add: Add, index: int, tokenizer: Tokenizer, stops: StopStrings) -> None:
        super().__init__(tokenizer, add.params, index, prompt.channels, stops, prompt.logprobs_of_all)
        self.aborted = False
        self.metrics: Metrics | None = None
        self.shown_logprobs: list[TokenLogprobs] = []
        """Of all its deltas, gathered where it competes with others."""
        self._add = add
        self._first_token_at: float | None = None

    @property
    def ended(self) -> bool:
        return self.aborted or self.finish_reason is not None

    @property
    def add(self) -> Add:
        """As a new engine needs it to go on where the lost one stopped."""
        return msgspec.structs.replace(self._add, output_ids=self._add.output_ids + self.output_ids)

    def take(self, request: RequestState, message: TokenOutput) -> bool:
        """Takes what the engine made of it and hands on what a reader is to be given now. → a stop string ended it,
        which the engine does not know. What comes after the end (it crossed its Abort) is ignored."""
        if self.aborted or self.finish_reason is not None:
            return False
        if message.metrics is not None or message.prompt_logprobs is not None or message.embedding is not None:
            self.metrics = message.metrics or self.metrics
            request.prompt_logprobs = message.prompt_logprobs or request.prompt_logprobs
            request.embedding = message.embedding or request.embedding
        if self._first_token_at is None and message.token_ids:
            self._first_token_at = time.perf_counter()
        delta = self.push(message)
        if self.stopped_by_text:
            self.metrics = self._measured()
        if request.selects or self.finish_reason is not None:
            request.took(self, delta)
        elif delta.text or delta.token_ids:
            request.listener.on_delta(request.index, delta)
        return self.stopped_by_text

    @property
    def mean_logprob(self) -> float:
        entries = self.output_logprobs
        return sum(entry.logprob for entry in entries) / max(len(entries), 1)

    def output(self, index: int, with_logprobs: bool) -> CompletionOutput:
        logprobs = self.output_logprobs
        return CompletionOutput(
            index=index,
            text=self.text,
            token_ids=self.output_ids,
            finish_reason="abort" if self.aborted else self.finish_reason,
            stop_reason=self.stop_reason,
            reasoning="" if self.channelled is None else self.channelled.reasoning,
            tool_calls=[] if self.channelled is None else self.channelled.tool_calls,
            logprobs=logprobs if with_logprobs else None,
            cumulative_logprob=sum(entry.logprob for entry in logprobs) if with_logprobs else None,
        )

    def whole(self, index: int, with_logprobs: bool) -> Delta:
        """All of it as one delta."""
        return Delta(
            index=index,
            text=self.text,
            token_ids=self.output_ids,
            reasoning="" if self.channelled is None else self.channelled.reasoning,
            tool_calls=[] if self.channelled is None else self.channelled.calls,
            logprobs=self.shown_logprobs if with_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def _measured(self) -> Metrics:
        """Ended at a stop string it is aborted, so the engine sends no final metrics: they are measured here."""
        since_first = (time.perf_counter() - (self._first_token_at or time.perf_counter())) * 1e3
        tokens = len(self.output_ids)
        later = tokens - 1
        return msgspec.structs.replace(
            self.metrics or Metrics(),
            completion_tokens=tokens,
            decode_ms=since_first if later > 0 else 0.0,
            decode_iterations=max(later, 0),
            tokens_per_second=later / since_first * 1e3 if later > 0 and since_first > 0 else 0.0,
        )


class _Nobody:
    def on_delta(self, _index: int, _delta: Delta) -> None:
        pass

    def on_end(self, _index: int, _error: ApiError | None) -> None:
        pass


_NOBODY = _Nobody()


class RequestState:
    """`adds` are those of `prepare.sequences`; the `listener` knows the request as `index`. With best_of > n nothing is
    shown before all candidates have ended; then come the n with the highest mean log-probability."""

    def __init__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        adds: list[Add],
        tokenizer: Tokenizer,
        listener: Listener,
        index: int = 0,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.listener = listener
        self.index = index
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.embedding: bytes | None = None
        self.done = False
        self.selects = len(adds) > params.n
        stops = StopStrings(params.stop_strings())
        self._choices = [Choice(prompt, add, number, tokenizer, stops) for number, add in enumerate(adds)]
        self._chosen: list[Choice] = [] if self.selects else self._choices
        self._told = False
        """The listener has heard the end."""

    # -- the ledger's side

    def unfinished(self) -> list[Sequence]:
        return [Sequence(choice.add, partial(choice.take, self)) for choice in self._choices if not choice.ended]

    def failed(self, error: ApiError) -> None:
        self._abort()
        self._end(error)

    # -- the choices'

    def took(self, choice: Choice, delta: Delta) -> None:
        """A delta that is the last of its choice, or waits for the best to be known."""
        self.done = all(each.ended for each in self._choices)
        if not self.selects:
            self.listener.on_delta(self.index, delta)
        else:
            choice.shown_logprobs += delta.logprobs or []
            for best in self._select_best() if self.done else ():
                self.listener.on_delta(self.index, best)
        if self.done:
            self._end(None)

    # -- the reader's

    def left(self) -> None:
        """Nobody reads it any more: the listener hears nothing more, and is not kept by it."""
        self._abort()
        self.listener = _NOBODY

    def _abort(self) -> None:
        for choice in self._choices:
            choice.aborted = choice.finish_reason is None
        self.done = True

    def _end(self, error: ApiError | None) -> None:
        if not self._told:
            self._told = True
            self.listener.on_end(self.index, error)

    @property
    def metrics(self) -> Metrics:
        """Of the whole request: the prompt once, completion tokens of all sequences; they run side by side, so times
        are those of the slowest and speeds add up. Complete once `done`."""
        each = [choice.metrics for choice in self._choices if choice.metrics is not None] or [Metrics()]
        return Metrics(
            prompt_tokens=len(self.prompt.token_ids),
            completion_tokens=sum(len(choice.output_ids) for choice in self._choices),
            reasoning_tokens=sum(choice.reasoning_tokens for choice in self._choices),
            cached_tokens=each[0].cached_tokens,
            queue_ms=min(m.queue_ms for m in each),
            prefill_ms=max(m.prefill_ms for m in each),
            decode_ms=max(m.decode_ms for m in each),
            decode_iterations=max(m.decode_iterations for m in each),
            tokens_per_second=sum(m.tokens_per_second for m in each),
            time_to_first_token_ms=min(m.time_to_first_token_ms for m in each),
        )

    def output(self) -> RequestOutput:
        """All choices, once `done`."""
        assert self.done, "the request has not ended"
        with_logprobs = self.params.logprobs is not None
        return RequestOutput(
            prompt=self.prompt.text,
            prompt_token_ids=self.prompt.token_ids,
            outputs=[choice.output(number, with_logprobs) for number, choice in enumerate(self._chosen)],
            metrics=self.metrics,
            prompt_logprobs=self.prompt_logprobs,
        )

    def _select_best(self) -> list[Delta]:
        best = sorted(self._choices, key=lambda choice: (-choice.mean_logprob, choice.index))
        self._chosen = best[: self.params.n]
        with_logprobs = self.params.logprobs is not None
        return [choice.whole(number, with_logprobs) for number, choice in enumerate(self._chosen)]
