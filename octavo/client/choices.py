"""One request in a client: its prompt and the n (or best_of) sequences that the engine generates for it.

Whoever holds the connection to the engine feeds it the engine's messages, sends the aborts it wants and, after an
engine restart, the Adds of `unfinished`. Transport-agnostic: no sockets, no loop. Invariant: each choice ends with
exactly one Delta that has a finish_reason, unless the request failed or was aborted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from octavo.client.base import Prompt
from octavo.client.stream import ChoiceStream
from octavo.errors import ApiError, error_from_wire
from octavo.text.stops import StopStrings
from octavo.text.tokenizer import Tokenizer
from octavo.types import CompletionOutput, Delta, Metrics, RequestOutput, SamplingParams, TokenLogprobs
from octavo.wire.messages import Add, Failed, TokenOutput


@dataclass
class _Sequence:
    """What has come of one Add."""

    add: Add
    stream: ChoiceStream
    index: int
    shown_logprobs: list[TokenLogprobs] = field(default_factory=list)
    aborted: bool = False
    metrics: Metrics | None = None
    first_token_at: float | None = None

    @property
    def finished(self) -> bool:
        return self.aborted or self.stream.finished

    @property
    def mean_logprob(self) -> float:
        entries = self.stream.output_logprobs
        return sum(entry.logprob for entry in entries) / max(len(entries), 1)

    def output(self, index: int, with_logprobs: bool) -> CompletionOutput:
        logprobs = self.stream.output_logprobs
        return CompletionOutput(
            index=index,
            text=self.stream.text,
            token_ids=self.stream.output_ids,
            finish_reason="abort" if self.aborted else self.stream.finish_reason,
            stop_reason=self.stream.stop_reason,
            reasoning="" if self.stream.channelled is None else self.stream.channelled.reasoning,
            tool_calls=[] if self.stream.channelled is None else self.stream.channelled.tool_calls,
            logprobs=logprobs if with_logprobs else None,
            cumulative_logprob=sum(entry.logprob for entry in logprobs) if with_logprobs else None,
        )

    def whole(self, index: int, with_logprobs: bool) -> Delta:
        """All of it as one delta."""
        channelled = self.stream.channelled
        return Delta(
            index=index,
            text=self.stream.text,
            token_ids=self.stream.output_ids,
            reasoning="" if channelled is None else channelled.reasoning,
            tool_calls=[] if channelled is None else channelled.calls,
            logprobs=self.shown_logprobs if with_logprobs else None,
            finish_reason=self.stream.finish_reason,
            stop_reason=self.stream.stop_reason,
        )


class RequestState:
    """`adds` are those of `prepare.sequences`, with the ids under which they were sent. With best_of > n nothing is
    shown before all candidates have ended; then come the n with the highest mean log-probability."""

    def __init__(self, prompt: Prompt, params: SamplingParams, adds: list[Add], tokenizer: Tokenizer) -> None:
        self.prompt = prompt
        self.params = params
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.embedding: bytes | None = None
        self.done = False
        stops = StopStrings(params.stop_strings())
        self._sequences = {
            add.id: _Sequence(
                add,
                ChoiceStream(tokenizer, add.params, index, prompt.channels, stops, prompt.logprobs_of_all),
                index,
            )
            for index, add in enumerate(adds)
        }
        self._select = len(adds) > params.n
        self._chosen: list[_Sequence] = [] if self._select else list(self._sequences.values())
        self._aborts: list[int] = []

    @property
    def ids(self) -> list[int]:
        """Ids of all its sequences, finished or not."""
        return list(self._sequences)

    def on_message(self, message: TokenOutput) -> list[Delta]:
        """Takes one message of the engine for one of its ids; → what a reader is to be given now. Messages for a
        sequence that has ended (they crossed its Abort) are ignored."""
        sequence = self._sequences[message.id]
        stream = sequence.stream
        if self.done or sequence.aborted or stream.finish_reason is not None:
            return []
        if message.prompt_logprobs is not None:
            self.prompt_logprobs = message.prompt_logprobs
        if message.embedding is not None:
            self.embedding = message.embedding
        if message.metrics is not None:
            sequence.metrics = message.metrics
        if sequence.first_token_at is None and message.token_ids:
            sequence.first_token_at = time.perf_counter()
        delta = stream.push(message)
        if stream.finish_reason is not None:
            if stream.stopped_by_text:
                self._aborts.append(message.id)
                _complete_metrics(sequence)
            self.done = all(s.finished for s in self._sequences.values())
        if not self._select:
            return [delta]
        sequence.shown_logprobs += delta.logprobs or []
        return self._select_best() if self.done else []

    def on_failed(self, message: Failed) -> ApiError:
        """One sequence failed, so the request did: the others are to be aborted. → the error to raise."""
        self._sequences[message.id].aborted = True
        self.abort()
        return error_from_wire(message.code, message.message, message.param)

    def abort(self) -> None:
        """The reader is gone: everything unfinished is to be aborted."""
        self._aborts += [id for id, sequence in self._sequences.items() if not sequence.finished]
        for sequence in self._sequences.values():
            sequence.aborted = not sequence.stream.finished
        self.done = True

    def take_aborts(self) -> list[int]:
        """Ids to send as Abort now; each is given once."""
        aborts = self._aborts
        if aborts:
            self._aborts = []
        return aborts

    def unfinished(self) -> list[Add]:
        """Adds that let a new engine go on where the lost one stopped: unfinished sequences, tokens so far."""
        return [
            msgspec.structs.replace(sequence.add, output_ids=sequence.add.output_ids + sequence.stream.output_ids)
            for sequence in self._sequences.values()
            if not sequence.finished
        ]

    @property
    def metrics(self) -> Metrics:
        """Of the whole request: the prompt once, completion tokens of all sequences; they run side by side, so times
        are those of the slowest and speeds add up. Complete once `done`."""
        each = [s.metrics for s in self._sequences.values() if s.metrics is not None] or [Metrics()]
        return Metrics(
            prompt_tokens=len(self.prompt.token_ids),
            completion_tokens=sum(len(sequence.stream.output_ids) for sequence in self._sequences.values()),
            reasoning_tokens=sum(s.stream.reasoning_tokens for s in self._sequences.values()),
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
            outputs=[sequence.output(index, with_logprobs) for index, sequence in enumerate(self._chosen)],
            metrics=self.metrics,
            prompt_logprobs=self.prompt_logprobs,
        )

    def _select_best(self) -> list[Delta]:
        best = sorted(self._sequences.values(), key=lambda s: (-s.mean_logprob, s.index))
        self._chosen = best[: self.params.n]
        with_logprobs = self.params.logprobs is not None
        return [sequence.whole(index, with_logprobs) for index, sequence in enumerate(self._chosen)]


def _complete_metrics(sequence: _Sequence) -> None:
    """A sequence that ended at a stop string is aborted, so the engine sends no final metrics: measured here."""
    since_first = (time.perf_counter() - (sequence.first_token_at or time.perf_counter())) * 1e3
    tokens = len(sequence.stream.output_ids)
    later = tokens - 1
    sequence.metrics = msgspec.structs.replace(
        sequence.metrics or Metrics(),
        completion_tokens=tokens,
        decode_ms=since_first if later > 0 else 0.0,
        decode_iterations=max(later, 0),
        tokens_per_second=later / since_first * 1e3 if later > 0 and since_first > 0 else 0.0,
    )
