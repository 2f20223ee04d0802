"""Messages gathered from the items or blocks of a face: neighbours of one turn joined, each with its place in the body.

Used by the responses and messages faces, whose turns come in pieces: a thought, a text and three calls are one message
of the assistant. Invariant: `places[i]` says where message i came from, in the words of the face, for its errors.
"""

from __future__ import annotations

import re
from typing import Any

from octavo.errors import ApiError
from octavo.types import Message

_MESSAGE = re.compile(r"\bmessages\[(\d+)\](?:\.[\w.\[\]]+)?")

Part = dict[str, Any]


class Turns:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.places: list[str] = []

    def system(self, parts: list[Part], place: str) -> None:
        self._say("system", parts, place)

    def user(self, parts: list[Part], place: str) -> None:
        self._say("user", parts, place)

    def assistant(self, parts: list[Part], place: str) -> None:
        last = self._last("assistant")
        if last is None or last.tool_calls:
            last = self._add(Message(role="assistant"), place)
        if parts:
            last.content = _joined(last.content, parts)

    def reasoning(self, text: str, place: str) -> None:
        last = self._last("assistant")
        if last is None or last.content or last.tool_calls:
            last = self._add(Message(role="assistant"), place)
        last.reasoning_content = f"{last.reasoning_content}\n{text}" if last.reasoning_content else text

    def call(self, call_id: str, name: str, arguments: str, place: str) -> None:
        last = self._last("assistant") or self._add(Message(role="assistant"), place)
        function = {"name": name, "arguments": arguments}
        last.tool_calls = [*(last.tool_calls or ()), {"id": call_id, "type": "function", "function": function}]

    def result(self, call_id: str, text: str, place: str) -> None:
        self._add(Message(role="tool", content=text, tool_call_id=call_id), place)

    def finished(self) -> list[Message]:
        """Every message has something to say: an assistant's turn with thoughts alone gets an empty text."""
        for message in self.messages:
            if message.content is None and not message.tool_calls:
                message.content = ""
        return self.messages

    def named(self, error: ApiError, whole: str) -> ApiError:
        """The same error in the words of the face: messages[i] as the place where it came from, `messages` as
        `whole`."""

        def place(match: re.Match[str]) -> str:
            at = int(match[1])
            return self.places[at] if at < len(self.places) else whole

        error.message = _MESSAGE.sub(place, error.message)
        if error.param is not None:
            error.param = whole if error.param == "messages" else _MESSAGE.sub(place, error.param)
        return error

    def _say(self, role: str, parts: list[Part], place: str) -> None:
        last = self._last(role)
        if last is None:
            self._add(Message(role=role, content=_joined(None, parts)), place)
        else:
            last.content = _joined(last.content, parts)

    def _last(self, role: str) -> Message | None:
        return self.messages[-1] if self.messages and self.messages[-1].role == role else None

    def _add(self, message: Message, place: str) -> Message:
        self.messages.append(message)
        self.places.append(place)
        return message


def _joined(content: str | list[Part] | None, parts: list[Part]) -> str | list[Part]:
    """One text stays a text, so that templates which know no parts see what was written."""
    before = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    together = [*before, *parts]
    return str(together[0]["text"]) if len(together) == 1 else together
