"""What waits for a client that does not read while its connection stands.

Owned by wire/sockets.py, one per client. Outputs are merged per sequence, so that a stall costs what was generated
meanwhile and not a message a step, and of Pongs only the last is kept. Invariants: nothing else is dropped; what
belongs to a sequence comes out in the order in which it went in; `size` is about the memory it holds.
"""

from __future__ import annotations

from collections import deque

from octavo.types import TokenLogprobs
from octavo.wire.messages import Failed, Outputs, Pong, ToClient, TokenOutput, Welcome

ITEM_BYTES = 200
TOKEN_BYTES = 40
LOGPROB_BYTES = 100
MERGED_BYTES = 16 << 10
"""An item that is larger takes no more: whoever reads it later takes it in one piece."""
FRAME_BYTES = 64 << 10
"""The same for one message: about 1,500 tokens without log-probabilities."""


class Backlog:
    __slots__ = ("_pong", "_sequences", "_words", "size")

    def __init__(self) -> None:
        self.size = 0
        """Bytes."""
        self._words: deque[ToClient] = deque()
        """Of the connection as a whole; they go first."""
        self._pong: Pong | None = None
        self._sequences: dict[int, deque[tuple[TokenOutput | Failed, int]]] = {}
        """Each with its size, by the sequence's id."""

    def add(self, message: ToClient) -> None:
        if isinstance(message, Outputs):
            for item in message.items:
                self._add(item)
        elif isinstance(message, Failed):
            self._append(message, ITEM_BYTES)
        elif isinstance(message, Pong):
            self._pong = message
        else:
            if isinstance(message, Welcome):  # a new session: what was said in the one before is over
                self._words.clear()
                self._sequences.clear()
                self.size = 0
            self._words.append(message)

    def take(self) -> ToClient | None:
        """The next message, None when nothing is left. A little of every sequence in turn."""
        if self._words:
            return self._words.popleft()
        if self._pong is not None:
            pong, self._pong = self._pong, None
            return pong
        items: list[TokenOutput] = []
        room = FRAME_BYTES
        for id in list(self._sequences):
            waiting = self._sequences[id]
            item, size = waiting[0]
            if items and (room < size or isinstance(item, Failed)):
                break
            waiting.popleft()
            room -= size
            self.size -= size
            del self._sequences[id]
            if waiting:  # behind the others
                self._sequences[id] = waiting
            if isinstance(item, Failed):
                return item
            items.append(item)
        return Outputs(items) if items else None

    def _add(self, item: TokenOutput) -> None:
        size = _size(item)
        if waiting := self._sequences.get(item.id):
            last, last_size = waiting[-1]
            if isinstance(last, TokenOutput) and last_size + size <= MERGED_BYTES:
                waiting[-1] = (_merged(last, item), last_size + size)
                self.size += size
                return
        self._append(item, ITEM_BYTES + size)

    def _append(self, item: TokenOutput | Failed, size: int) -> None:
        self._sequences.setdefault(item.id, deque()).append((item, size))
        self.size += size


def _merged(first: TokenOutput, then: TokenOutput) -> TokenOutput:
    """Two outputs of one sequence as one, in which both lists of tokens may live on."""
    first.token_ids += then.token_ids
    if then.logprobs is not None:
        first.logprobs = [*(first.logprobs or ()), *then.logprobs]
    first.finish_reason, first.stop_reason = then.finish_reason, then.stop_reason
    first.metrics = then.metrics or first.metrics
    first.prompt_logprobs = then.prompt_logprobs or first.prompt_logprobs
    first.embedding = then.embedding or first.embedding
    return first


def _size(item: TokenOutput) -> int:
    size = TOKEN_BYTES * len(item.token_ids) + len(item.embedding or b"")
    for entries in (item.logprobs, item.prompt_logprobs):
        if entries:
            size += sum(map(_logprob_bytes, entries))
    return size


def _logprob_bytes(entry: TokenLogprobs | None) -> int:
    return LOGPROB_BYTES if entry is None else LOGPROB_BYTES * (1 + len(entry.top))
