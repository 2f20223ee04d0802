"""One choice on its way back: token ids → text → channels → stop strings → deltas. Owns the text state of one sequence.

Called by client/engine.py and client/offline.py with every TokenOutput of the sequence. Invariant: the deltas' texts,
joined, are the choice's text, however the tokens were grouped; nothing that is shown is taken back. Stop strings are
looked for in the content alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

from octavo.client.channelled import ChannelledText, Placed
from octavo.text.channels import Channels
from octavo.text.detokenizer import Detokenizer
from octavo.text.stops import StopMatcher, StopStrings
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, FinishReason, SamplingParams, TokenLogprobs
from octavo.wire.messages import TokenOutput


class _Waiting(msgspec.Struct):
    """Log-probabilities of a token whose text, from character `start` of the content on, is not shown yet."""

    start: int
    logprobs: TokenLogprobs


class ChoiceStream:
    """Text, logprobs and end of one choice.

    Deltas carry all token ids as they come, but logprobs only of tokens whose text is shown, when it is shown: those
    of the stop token, of skipped special tokens and of a cut-off stop string never appear there, so that the joined
    tokens of the logprobs are the text; with `logprobs_of_all` there is one entry for each id, when the id comes.
    `output_ids` and `output_logprobs` hold every token.

    As in vLLM, `stop_reason` is the stop string, or the id when it is among `stop_token_ids`; None for end of sequence.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        index: int = 0,
        channels: Channels | None = None,
        stops: StopStrings | None = None,
        logprobs_of_all: bool = False,
    ) -> None:
        """`stops`: those of `params`, when another choice has them already."""
        self.output_ids: list[int] = []
        self.output_logprobs: list[TokenLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.stopped_by_text = False
        """A stop string ended the choice before the engine knew: the caller sends Abort."""
        self._tokenizer = tokenizer
        self._params = params
        self.index = index
        self._logprobs_of_all = logprobs_of_all
        self.channelled = None if channels is None else ChannelledText(tokenizer, channels)
        kept = frozenset[int]() if self.channelled is None else self.channelled.kept
        self._detokenizer = Detokenizer(
            tokenizer, skip_special_tokens=params.skip_special_tokens, continuation=True, kept=kept
        )
        stops = StopStrings(params.stop_strings()) if stops is None else stops
        self._stops = StopMatcher(stops, include_in_output=params.include_stop_str_in_output)
        self._plain = not stops.tables and params.logprobs is None and channels is None
        """Text is shown as it comes, token by token, and nobody asks where in the text a token begins."""
        self._decoded_len = 0
        self._shown_len = 0
        self._shown: list[str] = []
        self._waiting: deque[_Waiting] = deque()

    @property
    def text(self) -> str:
        """All text shown so far."""
        return "".join(self._shown)

    @property
    def reasoning_tokens(self) -> int:
        return 0 if self.channelled is None else self.channelled.reasoning_tokens

    def push(self, output: TokenOutput) -> Delta:
        """Take new tokens; the delta holds what may be shown because of them. After the end it is always empty."""
        if self.finish_reason is not None:
            return Delta(index=self.index)
        if self._plain and output.finish_reason is None and len(output.token_ids) == 1:  # most tokens
            ids = output.token_ids
            self.output_ids.append(ids[0])
            text = self._detokenizer.push(ids[0])
            self._shown.append(text)
            return Delta(index=self.index, text=text, token_ids=ids)
        count_before = len(self.output_ids)
        # A grammar that is complete ends an output without a stop token.
        has_stop_token = output.finish_reason == "stop" and output.stop_reason is not None
        stop_token = len(output.token_ids) - 1 if has_stop_token else -1
        pieces: list[str] = []
        for i, token_id in enumerate(output.token_ids):
            logprobs = output.logprobs[i] if output.logprobs else None
            hidden = i == stop_token and not self._params.include_stop_str_in_output
            pieces.append(self._push_token(token_id, logprobs, hidden))
            if self._ended_by_text:
                break
        if output.finish_reason is not None and not self._ended_by_text:
            pieces.append(self._flush(cut=output.finish_reason == "length"))
        self._end(output)
        text = "".join(pieces)
        self._shown_len += len(text)
        self._shown.append(text)
        delta = Delta(
            index=self.index,
            text=text,
            token_ids=self.output_ids[count_before:],
            logprobs=self._new_logprobs(count_before) if self._params.logprobs is not None else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
        if self.channelled is not None:
            self.channelled.fill(delta)
        return delta

    @property
    def _ended_by_text(self) -> bool:
        return self._stops.matched is not None or (self.channelled is not None and self.channelled.complete)

    def _end(self, output: TokenOutput) -> None:
        if self._ended_by_text:
            self.finish_reason, self.stop_reason = "stop", self._stops.matched
            self.stopped_by_text = output.finish_reason is None
        elif output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            self.stop_reason = self._public_stop_reason(output.stop_reason)
        if self.finish_reason == "stop" and self.channelled is not None and self.channelled.calls:
            self.finish_reason = "tool_calls"

    def _push_token(self, token_id: int, logprobs: TokenLogprobs | None, hidden: bool) -> str:
        self.output_ids.append(token_id)
        if logprobs is not None:
            self.output_logprobs.append(logprobs)
        if hidden:
            return ""
        text = self._detokenizer.push(token_id)
        if logprobs is not None and not self._detokenizer.shows(token_id):
            logprobs = None
        if self.channelled is not None:
            return self._route(self.channelled.push(text, logprobs))
        if logprobs is not None:
            self._waiting.append(_Waiting(self._decoded_len, logprobs))
        return self._match(text)

    def _route(self, placed: Iterator[Placed]) -> str:
        """Content out of the channels, up to a stop string."""
        shown: list[str] = []
        for text, tokens in placed:
            self._waiting += [_Waiting(self._decoded_len + start, logprobs) for start, logprobs in tokens]
            shown.append(self._match(text))
            if self._stops.matched is not None:
                break
        return "".join(shown)

    def _match(self, text: str) -> str:
        self._decoded_len += len(text)
        return self._stops.push(text, armed=len(self.output_ids) > self._params.min_tokens)

    def _flush(self, cut: bool) -> str:
        """The sequence is over: an unfinished code point and a stop string's beginning are text after all."""
        text = self._detokenizer.flush()
        shown = self._match(text) if self.channelled is None else self._route(self.channelled.finish(text, cut))
        return shown + self._stops.flush()

    def _new_logprobs(self, count_before: int) -> list[TokenLogprobs]:
        """Of what has come after so many tokens, or of the text that is shown because of it."""
        if self._logprobs_of_all:
            return self.output_logprobs[count_before:]
        released: list[TokenLogprobs] = []
        while self._waiting and self._waiting[0].start < self._shown_len:
            released.append(self._waiting.popleft().logprobs)
        return released

    def _public_stop_reason(self, token_id: int | None) -> int | None:
        if token_id is None or (token_id in self._tokenizer.eos_ids and not self._params.ignore_eos):
            return None
        return token_id
