"""Server-sent events as bytes."""

from __future__ import annotations

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: says nothing, but something."""
CONNECTION = "octavo.connection"
"""Key of the scope: the `send` of the connection itself, past all middleware."""

_json = msgspec.json.Encoder().encode


def event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


class Template:
    """An event of which only one text changes: the bytes before and after it."""

    def __init__(self, sample: bytes, field: str) -> None:
        """`sample`: the event with this field an empty text, which stands in it once: quotes inside of texts are
        escaped."""
        empty = f'"{field}":""'.encode()
        assert sample.count(empty) == 1, "not a template"
        at = sample.index(empty) + len(empty) - 2
        self._before, self._after = sample[:at], sample[at + 2 :]

    def fill(self, text: str) -> bytes:
        return self._before + _json(text) + self._after
