"""The stream of a response: named events with a sequence number, as OpenAI's; no [DONE] at its end.

Used by the responses handlers; implements sse.Writer, and output.Watcher for what grows. The text of a message is the
hot path: its events are joined from bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from octavo.errors import ApiError
from octavo.server.errors import clean
from octavo.server.openai.protocol.chat import LogprobEntry
from octavo.server.openai.protocol.responses import ItemStatus, OutputText, ReasoningText, ResponseObject
from octavo.server.openai.responses.output import Growing, Output
from octavo.text.tokenizer import Tokenizer
from octavo.types import Delta

_json = msgspec.json.Encoder().encode

_DELTA = {
    "message": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "function_call": "response.function_call_arguments.delta",
}


class ResponseEvents:
    """`begun`: the response as it is announced. `finished(output)`, `failed(output, error)`: as it ends."""

    def __init__(
        self,
        begun: ResponseObject,
        finished: Callable[[Output], ResponseObject],
        failed: Callable[[Output, ApiError], ResponseObject],
        tokenizer: Tokenizer,
        *,
        seals: bool,
    ) -> None:
        self._finished = finished
        self._failed = failed
        self._output = Output(tokenizer, self, seals=seals)
        self._number = 0
        self._out: list[bytes] = []
        self._before = b""
        """Of the open item's deltas: what stands before the sequence number."""
        self._between = b""
        self._event("response.created", response=begun)
        self._event("response.in_progress", response=begun)

    # -- sse.Writer

    def chunk(self, prompt_index: int, delta: Delta) -> bytes:
        self._output.take(delta)
        return self._taken()

    def end(self) -> bytes:
        response = self._finished(self._output)
        self._event(f"response.{response.status}", response=response)
        return self._taken()

    def fail(self, error: ApiError) -> bytes:
        self._output.close("incomplete")
        response = self._failed(self._output, error)
        self._event("error", code=error.code or error.type, message=clean(error.message), param=error.param)
        self._event("response.failed", response=response)
        return self._taken()

    # -- output.Watcher

    def opened(self, item: Growing) -> None:
        self._event("response.output_item.added", output_index=item.index, item=item.item("in_progress"))
        kind = _DELTA[item.kind]
        content = b',"content_index":0'
        if item.kind == "message":
            self._part("added", item, OutputText(text=""))
        elif item.kind == "reasoning":
            self._part("added", item, ReasoningText(text=""))
        else:
            content = b""
        self._before = f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":'.encode()
        self._between = b',"item_id":"%s","output_index":%d%s,"delta":' % (item.id.encode(), item.index, content)

    def grown(self, item: Growing, text: str, logprobs: list[LogprobEntry]) -> None:
        rest = b"}\n\n" if item.kind != "message" else b',"logprobs":%s}\n\n' % (_json(logprobs) if logprobs else b"[]")
        self._out += (self._before, b"%d" % self._number, self._between, _json(text), rest)
        self._number += 1

    def closed(self, item: Growing, status: ItemStatus) -> None:
        about: dict[str, Any] = {"item_id": item.id, "output_index": item.index}
        text = item.text
        if item.kind == "message":
            self._event("response.output_text.done", **about, content_index=0, text=text, logprobs=item.logprobs)
            self._part("done", item, OutputText(text=text, logprobs=item.logprobs))
        elif item.kind == "reasoning":
            self._event("response.reasoning_text.done", **about, content_index=0, text=text)
            self._part("done", item, ReasoningText(text=text))
        else:
            self._event("response.function_call_arguments.done", **about, name=item.name, arguments=text)
        self._event("response.output_item.done", output_index=item.index, item=self._output.items[-1])

    def _part(self, what: str, item: Growing, part: OutputText | ReasoningText) -> None:
        self._event(
            f"response.content_part.{what}", item_id=item.id, output_index=item.index, content_index=0, part=part
        )

    def _event(self, kind: str, **fields: Any) -> None:
        body = _json({"type": kind, "sequence_number": self._number, **fields})
        self._out.append(b"event: %s\ndata: %s\n\n" % (kind.encode(), body))
        self._number += 1

    def _taken(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out
