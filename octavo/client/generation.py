"""What `Client.generate` returns: the async reader's end of one request. The ledger writes, the HTTP handler reads.

Deltas that the reader has not taken yet are merged per choice, so a slow reader costs no more than its text. Invariant:
the request leaves the ledger when the iteration ends, however it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from octavo.client.base import Prompt
from octavo.client.choices import RequestState
from octavo.client.ledger import Ledger
from octavo.errors import ApiError
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, Metrics, SamplingParams, TokenLogprobs
from octavo.wire.messages import Add, TokenOutput


class LedgerGeneration:
    """Implements client.base.Generation and ledger.Request. `adds`: from `prepare.sequences`."""

    def __init__(
        self, prompt: Prompt, params: SamplingParams, adds: list[Add], tokenizer: Tokenizer, ledger: Ledger
    ) -> None:
        self.crashes = 0
        own = [msgspec.structs.replace(add, id=index) for index, add in enumerate(adds)]
        self._state = RequestState(prompt, params, own, tokenizer)
        self._ledger = ledger
        self._pending: dict[int, Delta] = {}
        self._error: ApiError | None = None
        self._news = asyncio.Event()

    # -- the ledger's side

    @property
    def done(self) -> bool:
        return self._state.done

    def unfinished(self) -> list[Add]:
        return self._state.resume()

    def output(self, message: TokenOutput) -> list[int]:
        for delta in self._state.on_message(message):
            if delta.text or delta.token_ids or delta.finish_reason is not None:
                waiting = self._pending.get(delta.index)
                self._pending[delta.index] = delta if waiting is None else merged(waiting, delta)
                self._news.set()
        if self._state.done:
            self._news.set()
        return self._state.take_aborts()

    def failed(self, error: ApiError) -> None:
        self._error = error
        self._state.abort()
        self._news.set()

    # -- the reader's side

    async def __aiter__(self) -> AsyncIterator[Delta]:
        try:
            while True:
                while self._pending:
                    yield self._pending.pop(next(iter(self._pending)))
                if self._error is not None:
                    raise self._error
                if self._state.done:
                    return
                self._news.clear()
                await self._news.wait()
        finally:
            self._leave()

    async def aclose(self) -> None:
        self._leave()

    @property
    def metrics(self) -> Metrics:
        return self._state.metrics

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        return self._state.prompt_logprobs

    def _leave(self) -> None:
        self._state.abort()
        self._ledger.leave(self)


def merged(first: Delta, second: Delta) -> Delta:
    """Two deltas of one choice, one after the other, as one."""
    both = None
    if first.logprobs is not None or second.logprobs is not None:
        both = [*(first.logprobs or []), *(second.logprobs or [])]
    return Delta(
        index=first.index,
        text=first.text + second.text,
        token_ids=[*first.token_ids, *second.token_ids],
        logprobs=both,
        finish_reason=second.finish_reason,
        stop_reason=second.stop_reason,
    )
