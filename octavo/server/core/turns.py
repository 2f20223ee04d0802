"""Messages gathered from the items or blocks of a face: neighbours of one turn joined, each with its place in the body.

Used by the responses and messages faces, whose turns come in pieces: a thought, a text and three calls are one message
of the assistant. Invariants: `places[i]` says where message i came from, in the words of the face, for its errors;
time is linear in what comes, however it is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from octavo.errors import ApiError, Place, RequestError
from octavo.types import Message

INLINE_BYTES = 1 << 16
"""Of a shorter body everything is made at once."""

T = TypeVar("T")
Part = dict[str, Any]


@dataclass(eq=False)
class _Turn:
    role: str
    items: list[list[Part]] = field(default_factory=list)
    """The parts of each item of the body that said something."""
    thoughts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    call_id: str | None = None

    def message(self) -> Message:
        """One text stays a text, so that templates which know no parts see what was written. Items that became one turn
        are lines of one text: parts would run together."""
        parts = [part for item in self.items for part in item]
        content: str | list[Part] | None = parts
        if not parts:
            content = None if self.calls else ""
        elif len(parts) == 1 or len(self.items) > 1:
            content = "\n".join(str(part["text"]) for part in parts)
        return Message(
            role=self.role,
            content=content,
            tool_calls=self.calls or None,
            tool_call_id=self.call_id,
            reasoning_content="\n".join(self.thoughts) or None,
        )


class Turns:
    def __init__(self) -> None:
        self.places: list[Place] = []
        self._turns: list[_Turn] = []

    def say(self, role: str, parts: list[Part], place: Place) -> None:
        """What the assistant says after calls, too, is part of their message: templates want the results of calls right
        behind it. Without parts a turn is begun, if none of this role is open."""
        turn = self._last_or_new(role, place)
        if parts:
            turn.items.append(parts)

    def reasoning(self, text: str, place: Place) -> None:
        self._last_or_new("assistant", place).thoughts.append(text)

    def call(self, call_id: str, name: str, arguments: str, place: Place) -> None:
        function = {"name": name, "arguments": arguments}
        self._last_or_new("assistant", place).calls.append({"id": call_id, "type": "function", "function": function})

    def result(self, call_id: str, text: str, place: Place) -> None:
        turn = self._new("tool", place)
        turn.items, turn.call_id = [[text_part(text)]], call_id

    @property
    def messages(self) -> list[Message]:
        return [turn.message() for turn in self._turns]

    def named(self, error: ApiError, whole: str) -> ApiError:
        """The same error in the words of the face: messages[i] as the place where it came from, `messages` as
        `whole`."""
        match error.place:
            case ("messages", int(at), *_) if at < len(self.places):
                error.place = self.places[at]
            case ("messages", *_):
                error.place = Place(whole)
        return error

    def _last_or_new(self, role: str, place: Place) -> _Turn:
        if self._turns and self._turns[-1].role == role:
            return self._turns[-1]
        return self._new(role, place)

    def _new(self, role: str, place: Place) -> _Turn:
        self._turns.append(_Turn(role))
        self.places.append(place)
        return self._turns[-1]


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def text_of(given: Mapping[str, Any], key: str, place: Place) -> str:
    """What an object of the body holds under `key`. Raises RequestError."""
    value = given.get(key)
    if not isinstance(value, str):
        raise RequestError.about(f"{place}.{key}", "must be a text")
    return value


@contextmanager
def reworded(words: Callable[[ApiError], ApiError]) -> Iterator[None]:
    """An error that is raised inside comes out as `words` says it."""
    try:
        yield
    except ApiError as error:
        raise words(error) from None


def schemas_named(error: ApiError, places: Sequence[Place]) -> ApiError:
    """The same error with the schema of the conversation's tool i under the name `places[i]`."""
    match error.place:
        case ("tools", int(at), "function", "parameters", *rest) if at < len(places):
            error.place = Place(*places[at], *rest)
        case ("tools", int(_), *_):
            error.place = Place("tools")
    return error


def moved(error: ApiError, places: Mapping[str, Place]) -> ApiError:
    """The same error about the field that a face calls otherwise than chat completions do."""
    error.place = places.get(error.param or "", error.place)
    return error


async def gathered(num_bytes: int, work: Callable[[], T]) -> T:
    """What `work` makes of a body of so many bytes; of a large one in a thread, so that other streams keep their
    pace."""
    return work() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(work)
