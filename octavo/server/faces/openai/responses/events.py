"""The stream of a response: named events with a sequence number, as OpenAI's; no [DONE] at its end.

The growing text is the hot path: its events are joined from bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from octavo.errors import ApiError
from octavo.server.core.errors import clean
from octavo.server.core.pieces import Piece
from octavo.server.faces.openai.protocol.responses import OutputText, ReasoningText, ResponseObject
from octavo.server.faces.openai.protocol.shared import LogprobEntry
from octavo.server.faces.openai.responses.output import Manner, Output
from octavo.server.http.sse import KEEP_ALIVE
from octavo.server.http.stream import EventStream, Source
from octavo.types import Delta, Metrics

_json = msgspec.json.Encoder().encode

_DELTA = {
    "text": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "call": "response.function_call_arguments.delta",
}


Ended = Callable[[Output, Metrics, ApiError | None], ResponseObject]
"""The response as it ends, well or with an error."""


class ResponseEvents(Output, EventStream):
    """`begun`: the response as it is announced."""

    def __init__(self, source: Source, manner: Manner, begun: ResponseObject, ended: Ended) -> None:
        Output.__init__(self, manner)
        EventStream.__init__(self, source)
        self._ended = ended
        self._number = 0
        self._out: list[bytes] = []
        self._before = b""
        """Of the open item's deltas: what stands before the sequence number."""
        self._between = b""
        self._event("response.created", response=begun)
        self._event("response.in_progress", response=begun)

    # -- EventStream

    def chunk(self, prompt_index: int, delta: Delta) -> bytes:
        self.take(delta)
        return self._written()

    def wait(self) -> bytes:
        """What is announced already, then a comment."""
        return self._written() or KEEP_ALIVE

    def end(self) -> bytes:
        response = self._ended(self, self.work.metrics[0], None)
        self._event(f"response.{response.status}", response=response)
        return self._written()

    def fail(self, error: ApiError) -> bytes:
        self.close(is_cut=True)
        response = self._ended(self, self.work.metrics[0], error)
        self._event("error", code=error.code or error.type, message=clean(error.message), param=error.param)
        self._event("response.failed", response=response)
        return self._written()

    # -- Pieces

    def opened(self, piece: Piece) -> None:
        super().opened(piece)
        self._event("response.output_item.added", output_index=piece.index, item=self.item(piece, "in_progress"))
        self._part("added", piece, "", [])
        kind, content = _DELTA[piece.kind], b"" if piece.kind == "call" else b',"content_index":0'
        self._before = f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":'.encode()
        self._between = b',"item_id":"%s","output_index":%d%s,"delta":' % (self.id.encode(), piece.index, content)

    def grown(self, piece: Piece, text: str) -> None:
        rest = b"}\n\n"
        if piece.kind == "text":
            new = self.new_logprobs(final=False) if self._waiting else None
            rest = b',"logprobs":%s}\n\n' % (_json(new) if new else b"[]")
        self._out += (self._before, b"%d" % self._number, self._between, _json(text), rest)
        self._number += 1

    def closed(self, piece: Piece, *, is_cut: bool) -> None:
        super().closed(piece, is_cut=is_cut)
        about: dict[str, Any] = {"item_id": self.id, "output_index": piece.index}
        text = piece.text
        if piece.kind == "text":
            self._event("response.output_text.done", **about, content_index=0, text=text, logprobs=self._logprobs)
        elif piece.kind == "reasoning":
            self._event("response.reasoning_text.done", **about, content_index=0, text=text)
        else:
            self._event("response.function_call_arguments.done", **about, name=self.own_name(piece)[1], arguments=text)
        self._part("done", piece, text, self._logprobs)
        self._event("response.output_item.done", output_index=piece.index, item=self.items[-1])

    def _part(self, what: str, piece: Piece, text: str, logprobs: list[LogprobEntry]) -> None:
        if piece.kind == "call":
            return
        part = OutputText(text=text, logprobs=logprobs) if piece.kind == "text" else ReasoningText(text=text)
        about: dict[str, Any] = {"item_id": self.id, "output_index": piece.index}
        self._event(f"response.content_part.{what}", **about, content_index=0, part=part)

    def _event(self, kind: str, **fields: Any) -> None:
        body = _json({"type": kind, "sequence_number": self._number, **fields})
        self._out.append(b"event: %s\ndata: %s\n\n" % (kind.encode(), body))
        self._number += 1

    def _written(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out
