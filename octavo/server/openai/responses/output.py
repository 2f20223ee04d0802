"""What a model says, put together as the output items of a response; streamed and plain answers are built here alike.

Pure; used by the responses handlers. A `Watcher` hears of each item as it grows: events.py makes the stream of it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal, Protocol

from octavo.server.openai.logprobs import ChatLogprobsBuilder
from octavo.server.openai.protocol.chat import LogprobEntry
from octavo.server.openai.protocol.responses import (
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from octavo.server.openai.responses.items import sealed
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, FinishReason, TokenLogprobs

_PREFIX = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


@dataclass(eq=False)
class Growing:
    """One item as far as it has come."""

    kind: Literal["message", "reasoning", "function_call"]
    index: int
    """In the output."""
    id: str
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[LogprobEntry] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def item(self, status: ItemStatus, *, seals: bool = False) -> OutputItem:
        if self.kind == "message":
            content = [OutputText(text=self.text, logprobs=self.logprobs)] if status != "in_progress" else []
            return MessageItem(id=self.id, status=status, content=content)
        if self.kind == "reasoning":
            thoughts = [ReasoningText(text=self.text)] if status != "in_progress" else []
            seal = sealed(self.text) if seals and thoughts else None
            return ReasoningItem(id=self.id, status=status, content=thoughts, encrypted_content=seal)
        return FunctionCallItem(id=self.id, status=status, call_id=self.call_id, name=self.name, arguments=self.text)


class Watcher(Protocol):
    def opened(self, item: Growing) -> None: ...
    def grown(self, item: Growing, text: str, logprobs: list[LogprobEntry]) -> None: ...
    def closed(self, item: Growing, status: ItemStatus) -> None: ...


class Output:
    """Takes the deltas of the one choice; an item ends where the next begins."""

    def __init__(self, tokenizer: Tokenizer, watcher: Watcher | None = None, *, seals: bool = False) -> None:
        self.items: list[OutputItem] = []
        """Those that are complete, in order."""
        self.reasoning = ""
        self.finish_reason: FinishReason | None = None
        self._builder = ChatLogprobsBuilder(tokenizer)
        self._waiting: list[TokenLogprobs] = []
        """Log-probabilities whose text has not come yet."""
        self._watcher = watcher
        self._seals = seals
        self._open: Growing | None = None
        self._num_items = 0
        self._call = -1

    def take(self, delta: Delta) -> None:
        final = delta.finish_reason is not None
        self._waiting += delta.logprobs or ()
        if delta.reasoning:
            self._grow(self._current("reasoning"), delta.reasoning, [])
        if delta.text:
            self._grow(self._current("message"), delta.text, self._logprobs(final))
        for part in delta.tool_calls:
            if part.index != self._call:
                self._call = part.index
                self._begin("function_call", part.id or f"call_{uuid.uuid4().hex}", part.name or "")
            if part.arguments:
                self._grow(self._current("function_call"), part.arguments, [])
        if final:
            self._end(delta.finish_reason)

    def _end(self, reason: FinishReason | None) -> None:
        """The last item is incomplete when the tokens ran out; an answer without anything is an empty text."""
        self.finish_reason = reason
        if self._num_items == 0:
            self._begin("message")
        if self._waiting and self._open is not None and self._open.kind == "message":
            self._open.logprobs += self._logprobs(final=True)
        self.close("incomplete" if reason == "length" else "completed")

    def close(self, status: ItemStatus) -> None:
        """The open item, if there is one, ends as `status`."""
        item, self._open = self._open, None
        if item is None:
            return
        if item.kind == "reasoning":
            self.reasoning += item.text
        self.items.append(item.item(status, seals=self._seals))
        if self._watcher is not None:
            self._watcher.closed(item, status)

    def _current(self, kind: Literal["message", "reasoning", "function_call"]) -> Growing:
        if self._open is None or self._open.kind != kind:
            return self._begin(kind)
        return self._open

    def _begin(
        self, kind: Literal["message", "reasoning", "function_call"], call_id: str = "", name: str = ""
    ) -> Growing:
        self.close("completed")
        item = Growing(kind, self._num_items, f"{_PREFIX[kind]}_{uuid.uuid4().hex}", call_id, name)
        self._num_items += 1
        self._open = item
        if self._watcher is not None:
            self._watcher.opened(item)
        return item

    def _grow(self, item: Growing, text: str, logprobs: list[LogprobEntry]) -> None:
        item.pieces.append(text)
        item.logprobs += logprobs
        if self._watcher is not None:
            self._watcher.grown(item, text, logprobs)

    def _logprobs(self, final: bool) -> list[LogprobEntry]:
        entries, self._waiting = self._waiting, []
        return self._builder.build(entries, final).content if entries else []
