"""Tables as wide as the vocabulary, for the few rows that need one; used by penalties and allowed_token_ids.

Owns the place of each row in its tables, which the host knows, and the tables, which are the device's. A vocabulary
times all rows would be large, so tables start empty and double when more rows need a place than ever before.
Invariant: a place belongs to at most one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


class VocabTables:
    """`tables[i]` is [places, vocab] of dtype i; they belong to the device's queue, everything else to the host."""

    def __init__(self, max_rows: int, vocab_size: int, dtypes: Sequence[torch.dtype], device: torch.device) -> None:
        self.tables = [torch.zeros((0, vocab_size), dtype=dtype, device=device) for dtype in dtypes]
        self._vocab_size = vocab_size
        self._place_of_row = np.full(max_rows, -1, np.int64)
        self._free: list[int] = []
        self._size = 0

    def claim(self, row: int) -> int:
        """A place for the row; `clear` it before it is used."""
        assert self._place_of_row[row] < 0, f"row {row} has a place already"
        if not self._free:
            more = max(self._size, 1)
            self._free = list(range(self._size + more - 1, self._size - 1, -1))
            self._size += more
        place = self._free.pop()
        self._place_of_row[row] = place
        return place

    def release(self, row: int) -> None:
        """Rows without a place are fine."""
        place = int(self._place_of_row[row])
        if place >= 0:
            self._free.append(place)
            self._place_of_row[row] = -1

    def places(self, rows: Ints) -> Ints:
        """[samples]: where in the tables each of `rows` is; -1: nowhere."""
        return self._place_of_row[rows]

    def entries(self, place: int, token_ids: Sequence[int]) -> Ints:
        """Where these tokens of a place are in a table seen as one line."""
        ids = np.array(token_ids, np.int64)
        assert not ids.size or 0 <= ids.min() <= ids.max() < self._vocab_size, "a token id beyond the vocabulary"
        return ids + place * self._vocab_size

    def clear(self, places: Tensor) -> None:
        """On the device: there is memory for all places that were claimed, and these [n] int64 hold zeros."""
        more = self._size - self.tables[0].shape[0]
        if more > 0:
            self.tables = [torch.cat([table, table.new_zeros((more, table.shape[1]))]) for table in self.tables]
        for table in self.tables:
            table.index_fill_(0, places, 0)
