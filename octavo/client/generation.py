"""What `Client.generate` returns: the reader's end of one request. The ledger writes, whoever asked for it reads.

A reader either iterates over the deltas, or follows: then a listener hears each in the moment it comes. Deltas that an
iterating reader has not taken yet are merged per choice, so a slow one costs no more than its text. Invariant: the
request leaves the ledger when the iteration ends, however it ends, or at `aclose`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from octavo.client.base import Listener, Prompt
from octavo.client.choices import RequestState
from octavo.client.ledger import Ledger
from octavo.client.news import News
from octavo.errors import ApiError
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, SamplingParams
from octavo.wire.messages import Add


class LedgerGeneration(RequestState):
    """Implements client.base.Generation and ledger.Request."""

    def __init__(
        self, prompt: Prompt, params: SamplingParams, adds: list[Add], tokenizer: Tokenizer, ledger: Ledger
    ) -> None:
        self._waiting = _Waiting()
        super().__init__(prompt, params, adds, tokenizer, self._waiting)
        self._ledger = ledger

    def follow(self, listener: Listener, index: int) -> None:
        waiting, self.listener, self.index = self._waiting, listener, index
        for delta in waiting.deltas.values():
            listener.on_delta(index, delta)
        if waiting.ended:
            listener.on_end(index, waiting.error)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        waiting = self._waiting
        try:
            while True:
                while waiting.deltas:
                    yield waiting.deltas.pop(next(iter(waiting.deltas)))
                if waiting.error is not None:
                    raise waiting.error
                if self.done:
                    return
                await waiting.news.wait()
        finally:
            self._leave()

    async def aclose(self) -> None:
        self._leave()

    def _leave(self) -> None:
        self.left()
        self._ledger.leave(self)


class _Waiting:
    """The listener of an iterating reader: what came since it last looked."""

    def __init__(self) -> None:
        self.deltas: dict[int, Delta] = {}
        self.ended = False
        self.error: ApiError | None = None
        self.news = News()

    def on_delta(self, _index: int, delta: Delta) -> None:
        before = self.deltas.get(delta.index)
        self.deltas[delta.index] = delta if before is None else merged([before, delta])
        self.news.ring()

    def on_end(self, _index: int, error: ApiError | None) -> None:
        self.ended, self.error = True, error
        self.news.ring()


def merged(deltas: list[Delta]) -> Delta:
    """Deltas of one choice, one after the other, as one."""
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    logprobs = None
    if any(delta.logprobs is not None for delta in deltas):
        logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
    return Delta(
        index=last.index,
        text="".join([delta.text for delta in deltas]),
        token_ids=[id for delta in deltas for id in delta.token_ids],
        reasoning="".join([delta.reasoning for delta in deltas]),
        tool_calls=[part for delta in deltas for part in delta.tool_calls],
        logprobs=logprobs,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
    )
