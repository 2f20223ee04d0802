"""What a model says, cut into pieces: a thought, a text, a call … each growing until the next begins.

Base of the responses' output items and the messages' content blocks: the streamed and the plain answer of a face are
built by the same subclass, so they cannot differ. Invariant: at most one piece is open; every piece is opened and
closed once, in order.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal

from octavo.types import Delta, FinishReason, ToolCallDelta

Kind = Literal["text", "reasoning", "call"]


@dataclass(eq=False)
class Piece:
    kind: Kind
    index: int
    call_id: str = ""
    name: str = ""
    """Of the function that a call is for."""
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """For a call: its arguments."""
        return "".join(self.texts)


class Pieces:
    """Of one choice. Subclasses hear of each piece by `opened`, `grown` and `closed`."""

    def __init__(self) -> None:
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self._open: Piece | None = None
        self._count = 0
        self._call = -1

    def opened(self, piece: Piece) -> None:
        pass

    def grown(self, piece: Piece, text: str) -> None:
        pass

    def closed(self, piece: Piece, *, is_cut: bool) -> None:
        """`is_cut`: the answer broke off inside of it."""

    def take(self, delta: Delta) -> None:
        """In the order in which a model says it: the rest of the open call, thoughts, text, new calls."""
        calls = delta.tool_calls
        rest = 0
        while rest < len(calls) and self._open is not None and calls[rest].index == self._call:
            self._argue(calls[rest])
            rest += 1
        if delta.reasoning:
            self._grow("reasoning", delta.reasoning)
        if delta.text:
            self._grow("text", delta.text)
        for part in calls[rest:]:
            self._argue(part)
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
            if self._count == 0:  # an answer without anything is an empty text
                self._begin("text")
            self.close(is_cut=delta.finish_reason == "length")

    def _argue(self, part: ToolCallDelta) -> None:
        if part.index != self._call:
            self._call = part.index
            self._begin("call", part.id or f"call_{uuid.uuid4().hex}", part.name or "")
        if part.arguments:
            self._grow("call", part.arguments)

    def close(self, *, is_cut: bool) -> None:
        """The open piece ends, if there is one."""
        piece, self._open = self._open, None
        if piece is not None:
            self.closed(piece, is_cut=is_cut)

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> Piece:
        self.close(is_cut=False)
        self._open = piece = Piece(kind, self._count, call_id, name)
        self._count += 1
        self.opened(piece)
        return piece

    def _grow(self, kind: Kind, text: str) -> None:
        piece = self._open if self._open is not None and self._open.kind == kind else self._begin(kind)
        piece.texts.append(text)
        self.grown(piece, text)
