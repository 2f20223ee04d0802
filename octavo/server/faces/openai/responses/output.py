"""What a model says as the output items of a response. Pure; streamed and plain answers are made of the same."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from octavo.server.core.pieces import Piece, Pieces
from octavo.server.faces.openai.logprobs import PIECE, ChatLogprobsBuilder, encoded
from octavo.server.faces.openai.protocol.responses import (
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from octavo.server.faces.openai.protocol.shared import LogprobEntry
from octavo.server.faces.openai.responses.seal import sealed
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta, TokenLogprobs

_PREFIX = {"text": "msg", "reasoning": "rs", "call": "fc"}


@dataclass(frozen=True)
class Manner:
    """`spaces`: namespace and name of functions that the model sees under another name. `seals`: reasoning is given in
    the form to send back, too."""

    tokenizer: Tokenizer
    spaces: Mapping[str, tuple[str, str]]
    seals: bool = False


class Output(Pieces):
    def __init__(self, manner: Manner) -> None:
        super().__init__()
        self._manner = manner
        self.items: list[OutputItem] = []
        """Those that are complete, in order."""
        self.id = ""
        """Of the open item."""
        self._builder = ChatLogprobsBuilder(manner.tokenizer)
        self._waiting: list[TokenLogprobs] = []
        """Log-probabilities whose text has not come yet."""
        self._logprobs: list[LogprobEntry] = []
        """Of the open item."""

    def take(self, delta: Delta) -> None:
        self._waiting += delta.logprobs or ()
        super().take(delta)

    def opened(self, piece: Piece) -> None:
        self.id = f"{_PREFIX[piece.kind]}_{uuid.uuid4().hex}"
        self._logprobs = []

    def grown(self, piece: Piece, text: str) -> None:
        if self._waiting and piece.kind == "text":
            self.new_logprobs(final=False)

    def closed(self, piece: Piece, *, is_cut: bool) -> None:
        if self._waiting and piece.kind == "text":
            self.new_logprobs(final=True)
        self.items.append(self.item(piece, "incomplete" if is_cut else "completed"))

    def new_logprobs(self, *, final: bool) -> list[LogprobEntry]:
        """Of the text that has just come."""
        entries, self._waiting = self._waiting, []
        new = self._builder.build(entries, final).content if entries else []
        self._logprobs += new
        return new

    def item(self, piece: Piece, status: ItemStatus) -> OutputItem:
        text, is_begun = piece.text, status == "in_progress"
        if piece.kind == "text":
            many = len(self._logprobs) > PIECE
            logprobs = encoded(self._logprobs) if many else self._logprobs
            content = [] if is_begun else [OutputText(text=text, logprobs=logprobs)]
            return MessageItem(id=self.id, status=status, content=content)
        if piece.kind == "reasoning":
            thoughts = [] if is_begun else [ReasoningText(text=text)]
            seal = sealed(text) if self._manner.seals and not is_begun else UNSET
            return ReasoningItem(id=self.id, status=status, content=thoughts, encrypted_content=seal)
        namespace, name = self.own_name(piece)
        return FunctionCallItem(
            id=self.id, status=status, call_id=piece.call_id, name=name, namespace=namespace, arguments=text
        )

    def own_name(self, piece: Piece) -> tuple[str | UnsetType, str]:
        """Of a call: the function's namespace, if any, and its name there."""
        return self._manner.spaces.get(piece.name, (UNSET, piece.name))
