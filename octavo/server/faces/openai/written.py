"""Bodies with messages and tools, decoded together with what these were written as.

Templates may read keys that this API does not know, and may print a whole message or tool with its keys in their order.
The structs say what is valid; what is written otherwise than their fields stand in order is kept beside them, bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from octavo.errors import Place, RequestError
from octavo.server.faces.openai.protocol.chat import ChatMessage, ChatTool, WrittenChatMessage, WrittenTool
from octavo.types import Message

MAX_KEYS = 64
"""Of one message or tool, beside those that are known."""
MAX_BYTES = 1 << 20
"""In the values of such keys, over all messages and tools."""

_MESSAGE = Message.__struct_fields__
_TOOL, _FUNCTION = ("type", "function"), ("name", "description", "parameters")


class _Body(Protocol):
    @property
    def messages(self) -> list[ChatMessage] | None: ...

    @property
    def tools(self) -> list[ChatTool] | None: ...


T = TypeVar("T", bound=_Body)


class _Given(msgspec.Struct, frozen=True):
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


_given = msgspec.json.Decoder(_Given)


class WrittenDecoder(Generic[T]):
    """Decodes as msgspec's decoder of `kind` does. Raises RequestError for keys beyond the bounds."""

    def __init__(self, kind: type[T]) -> None:
        self.type = kind
        self._decoder = msgspec.json.Decoder(kind)
        self._known = {*ChatMessage.__struct_fields__}

    def decode(self, body: bytes) -> T:
        asked = self._decoder.decode(body)
        if not asked.messages:
            return asked
        given = _given.decode(body)
        left = MAX_BYTES
        for i, message in enumerate(given.messages or ()):
            if not _is_in_order(message, _MESSAGE):
                left -= _weight(message, self._known, Place("messages", i), left)
                fields = msgspec.structs.asdict(asked.messages[i])
                asked.messages[i] = WrittenChatMessage(**fields, given=message)
        for i, tool in enumerate(given.tools or ()):
            function = tool.get("function")
            if asked.tools and not (_is_in_order(tool, _TOOL) and _is_in_order(function or {}, _FUNCTION)):
                left -= _weight(tool, {*_TOOL}, Place("tools", i), left)
                left -= _weight(function or {}, {*_FUNCTION, "strict"}, Place("tools", i, "function"), left)
                one = asked.tools[i]
                asked.tools[i] = WrittenTool(type=one.type, function=one.function, given=tool)
        return asked


def _is_in_order(given: dict[str, Any], fields: Sequence[str]) -> bool:
    """Whether the keys are some of the fields, in their order: then nothing but the fields need be kept."""
    at = -1
    for key in given:
        if key not in fields or fields.index(key) < at:
            return False
        at = fields.index(key)
    return True


def _weight(given: dict[str, Any], known: set[str], where: Place, left: int) -> int:
    """Bytes of the keys that are not known, about. Raises RequestError where they are too many."""
    further = [key for key in given if key not in known]
    if len(further) > MAX_KEYS:
        raise RequestError.about(
            where,
            f"has {len(further)} keys that this API does not know, at most {MAX_KEYS}; "
            f"{further[-1][:40]!r} is one of them",
        )
    written = msgspec.json.encode({key: given[key] for key in further}) if further else b""
    if b"\\u0000" in written:
        raise RequestError.about(where, "holds a NUL character, which no model's text has; remove it")
    if (weight := len(written)) > left:
        raise RequestError(
            f"{where}: what keys that this API does not know hold is more than {MAX_BYTES} bytes in all; "
            f"leave out {further[-1][:40]!r}",
            param=where,
        )
    return weight
