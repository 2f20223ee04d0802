"""What a model says as the content blocks of a message, plain and streamed, and how it ended. Used by the handlers."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import msgspec

from octavo.errors import ApiError
from octavo.server.core.pieces import Piece, Pieces
from octavo.server.faces.anthropic.errors import anthropic_body
from octavo.server.faces.anthropic.protocol import (
    AnthropicMessage,
    ContentBlock,
    MessagesRequest,
    MessageUsage,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from octavo.server.http.stream import EventStream, Source
from octavo.types import Delta, Metrics

_json = msgspec.json.Encoder().encode
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_DELTAS = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


class Blocks(Pieces):
    def __init__(self) -> None:
        super().__init__()
        self.content: list[ContentBlock] = []
        """Those that are complete, in order."""

    def closed(self, piece: Piece, *, is_cut: bool) -> None:
        self.content.append(_block(piece))


def _block(piece: Piece) -> ContentBlock:
    if piece.kind == "text":
        return TextBlock(text=piece.text)
    if piece.kind == "reasoning":
        return ThinkingBlock(thinking=piece.text, signature=signature(piece.text))
    return ToolUseBlock(id=piece.call_id, name=piece.name, input=_input(piece.text))


def _input(arguments: str) -> dict[str, Any]:
    """Arguments that broke off with the answer are given as they stand, in the wrapping that Anthropic proposes."""
    try:
        found = msgspec.json.decode(arguments) if arguments else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": arguments}


def signature(thinking: str) -> str:
    """Clients keep only thoughts that are signed. Nothing is secret or checked here."""
    return base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()


def ending(asked: MessagesRequest, pieces: Pieces, metrics: Metrics) -> tuple[StopReason, str | None]:
    """→ stop_reason, stop_sequence"""
    if pieces.finish_reason == "tool_calls":
        return "tool_use", None
    if pieces.finish_reason == "length":
        is_full = metrics.completion_tokens < asked.max_tokens
        return "model_context_window_exceeded" if is_full else "max_tokens", None
    if isinstance(pieces.stop_reason, str) and pieces.stop_reason in (asked.stop_sequences or asked.stop_strings()):
        return "stop_sequence", pieces.stop_reason
    return "end_turn", None


def usage(metrics: Metrics) -> MessageUsage:
    return MessageUsage(
        input_tokens=metrics.prompt_tokens - metrics.cached_tokens,
        cache_read_input_tokens=metrics.cached_tokens,
        output_tokens=metrics.completion_tokens,
    )


class MessageEvents(Blocks, EventStream):
    """The stream of a message; Deltas are the hot path: they are joined from bytes."""

    def __init__(self, source: Source, asked: MessagesRequest, message_id: str, model: str) -> None:
        Blocks.__init__(self)
        EventStream.__init__(self, source)
        self._asked = asked
        self._out: list[bytes] = []
        self._begun = False
        self._message = (message_id, model)
        self._request_id = source.account.request_id
        self._before = b""
        """Of the open block's deltas."""

    def chunk(self, prompt_index: int, delta: Delta) -> bytes:
        self._announce()
        self.take(delta)
        return self._written()

    def wait(self) -> bytes:
        return _PING

    def end(self) -> bytes:
        metrics = self.work.metrics[0]
        reason, sequence = ending(self._asked, self, metrics)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        self._event("message_delta", delta=delta, usage=usage(metrics))
        self._event("message_stop")
        return self._written()

    def fail(self, error: ApiError) -> bytes:
        return b"event: error\ndata: %s\n\n" % anthropic_body(error, self._request_id)

    def opened(self, piece: Piece) -> None:
        empty: dict[str, Any]
        if piece.kind == "text":
            empty = {"type": "text", "text": ""}
        elif piece.kind == "reasoning":
            empty = {"type": "thinking", "thinking": "", "signature": ""}
        else:
            empty = {"type": "tool_use", "id": piece.call_id, "name": piece.name, "input": {}}
        self._event("content_block_start", index=piece.index, content_block=empty)
        if piece.index == 0:
            self._out.append(_PING)
        kind, field = _DELTAS[piece.kind]
        head = f'"index":{piece.index},"delta":{{"type":"{kind}","{field}":'
        self._before = b'event: content_block_delta\ndata: {"type":"content_block_delta",' + head.encode()

    def grown(self, piece: Piece, text: str) -> None:
        self._out += (self._before, _json(text), b"}}\n\n")

    def closed(self, piece: Piece, *, is_cut: bool) -> None:
        super().closed(piece, is_cut=is_cut)
        if piece.kind == "reasoning":
            delta = {"type": "signature_delta", "signature": signature(piece.text)}
            self._event("content_block_delta", index=piece.index, delta=delta)
        self._event("content_block_stop", index=piece.index)

    def _announce(self) -> None:
        """With the first delta, when it is known what the cache gave."""
        if self._begun:
            return
        self._begun = True
        message_id, model = self._message
        said = usage(self.work.metrics[0])
        said.output_tokens = min(said.output_tokens, 1)
        message = AnthropicMessage(
            id=message_id, model=model, content=[], stop_reason=None, stop_sequence=None, usage=said
        )
        self._event("message_start", message=message)

    def _event(self, kind: str, **fields: Any) -> None:
        self._out.append(b"event: %s\ndata: %s\n\n" % (kind.encode(), _json({"type": kind, **fields})))

    def _written(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out
