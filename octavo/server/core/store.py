"""Responses that can be asked for again or gone on from: bounded by number and bytes, the least recently used go first.

On the event loop. Each API key has a store of its own: nothing of one key is moved, hidden or found by what another
does. A response keeps its own input only; a conversation is the chain of its predecessors. Items are kept as the JSON
that they are shown and referred to as, so that nothing has to be decoded to find one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from octavo.errors import RequestError
from octavo.server.core.errors import Refused

MAX_RESPONSES = 1000
MAX_BYTES = 64 << 20
"""Of one key."""
MAX_BYTES_IN_ALL = 512 << 20
MAX_BYTES_OF_ONE = 8 << 20
"""A larger response is answered, and not kept."""

Items = tuple[tuple[str, bytes], ...]
"""Ids and JSON, in order."""


class ResponseNotFound(Refused, status=404):
    """None of this id is kept."""


@dataclass(frozen=True)
class Stored:
    id: str
    previous_id: str | None
    body: bytes
    """The response as JSON."""
    inputs: Items
    """What came in beside the predecessors."""
    outputs: Items

    @property
    def items(self) -> Items:
        return self.inputs + self.outputs

    @property
    def num_bytes(self) -> int:
        return len(self.body) + self.num_item_bytes + 128 * len(self.items)

    @property
    def num_item_bytes(self) -> int:
        """What going on from it weighs."""
        return sum(len(item) for _, item in self.items)


class ResponseStore:
    """Of one API key."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self.max_responses = max_responses
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._found: OrderedDict[str, Stored] = OrderedDict()
        self._of_item: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._found)

    def keeps(self, num_bytes: int) -> bool:
        """Whether a response of so many bytes can be kept."""
        return num_bytes <= min(MAX_BYTES_OF_ONE, self.max_bytes)

    def put(self, stored: Stored) -> None:
        """One that alone is over the limit is not kept."""
        if not self.keeps(stored.num_bytes):
            return
        self._found[stored.id] = stored
        self.num_bytes += stored.num_bytes
        self._of_item.update((item_id, stored.id) for item_id, _ in stored.items)
        while len(self._found) > self.max_responses or self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._found)))

    def get(self, response_id: str) -> Stored:
        """Raises ResponseNotFound."""
        stored = self._found.get(response_id)
        if stored is None:
            raise ResponseNotFound(f"Response with id {response_id[:100]!r} not found.")
        self._found.move_to_end(response_id)
        return stored

    def delete(self, response_id: str) -> None:
        """Raises ResponseNotFound."""
        self.get(response_id)
        self._drop(response_id)

    def item(self, item_id: str) -> bytes | None:
        """Of any response, as JSON."""
        stored = self._found.get(self._of_item.get(item_id, ""))
        return None if stored is None else next((item for known, item in stored.items if known == item_id), None)

    def chain(self, response_id: str) -> list[Stored]:
        """The response and all before it, the first one first. Raises RequestError where one of them is gone."""
        found: list[Stored] = []
        next_id: str | None = response_id
        while next_id is not None:
            stored = self._found.get(next_id)
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
        for item_id, _ in stored.items:
            if self._of_item.get(item_id) == response_id:
                del self._of_item[item_id]


class ResponseStores:
    """`num_keys`: API keys there are; together they hold at most MAX_BYTES_IN_ALL."""

    def __init__(self, num_keys: int = 1) -> None:
        self._max_bytes = min(MAX_BYTES, MAX_BYTES_IN_ALL // max(num_keys, 1))
        self._of_owner: dict[str, ResponseStore] = {}

    @property
    def num_responses(self) -> int:
        return sum(map(len, self._of_owner.values()))

    @property
    def num_bytes(self) -> int:
        return sum(store.num_bytes for store in self._of_owner.values())

    def of(self, owner: str) -> ResponseStore:
        """`owner`: as accounts have it, so there are as many as keys."""
        return self._of_owner.setdefault(owner, ResponseStore(max_bytes=self._max_bytes))
