"""Responses that can be asked for again or gone on from: bounded by number and bytes, the least recently used go first.

On the event loop. A response belongs to the API key that made it: for
any other it does not exist. Each keeps its own input only; a conversation is the chain of its predecessors.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from octavo.errors import ApiError, RequestError

MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20


class ResponseNotFound(ApiError):
    status = 404
    type = "invalid_request_error"


@dataclass(frozen=True)
class Stored:
    id: str
    owner: str
    previous_id: str | None
    body: bytes
    """The response as JSON; its output is there."""
    input_items: bytes
    """What came in beside the predecessors: a JSON array."""
    item_ids: tuple[str, ...]
    """Of its input and output."""

    @property
    def num_bytes(self) -> int:
        return len(self.body) + len(self.input_items) + 128 * len(self.item_ids)


class ResponseStore:
    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self.max_responses = max_responses
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._found: OrderedDict[str, Stored] = OrderedDict()
        self._of_item: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._found)

    def put(self, stored: Stored) -> None:
        """One that alone is over the limit is not kept."""
        if stored.num_bytes > self.max_bytes:
            return
        self._found[stored.id] = stored
        self.num_bytes += stored.num_bytes
        self._of_item.update(dict.fromkeys(stored.item_ids, stored.id))
        while len(self._found) > self.max_responses or self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._found)))

    def get(self, response_id: str, owner: str) -> Stored:
        """Raises ResponseNotFound."""
        stored = self._of(response_id, owner)
        if stored is None:
            raise ResponseNotFound(f"Response with id {response_id[:100]!r} not found.")
        self._found.move_to_end(response_id)
        return stored

    def delete(self, response_id: str, owner: str) -> None:
        """Raises ResponseNotFound."""
        self.get(response_id, owner)
        self._drop(response_id)

    def holder(self, item_id: str, owner: str) -> Stored | None:
        """The response that the item is of."""
        return self._of(self._of_item.get(item_id, ""), owner)

    def chain(self, response_id: str, owner: str) -> list[Stored]:
        """The response and all before it, the first one first. Raises RequestError where one of them is gone."""
        found: list[Stored] = []
        next_id: str | None = response_id
        while next_id is not None:
            stored = self._of(next_id, owner)
            if stored is None:
                raise RequestError(
                    f"Previous response with id {response_id[:100]!r} not found.",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
            found.append(stored)
            next_id = stored.previous_id
        for stored in reversed(found):
            self._found.move_to_end(stored.id)
        return found[::-1]

    def _drop(self, response_id: str) -> None:
        stored = self._found.pop(response_id)
        self.num_bytes -= stored.num_bytes
        for item_id in stored.item_ids:
            if self._of_item.get(item_id) == response_id:
                del self._of_item[item_id]

    def _of(self, response_id: str, owner: str) -> Stored | None:
        stored = self._found.get(response_id)
        return stored if stored is not None and stored.owner == owner else None
