"""Tables as wide as the vocabulary, for the few rows that need one; used by penalties and allowed_token_ids.

Owns the place of each row in its tables. A vocabulary times all rows would be large, so tables start empty and
double when more rows need a place than ever before. Invariant: a place belongs to at most one row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class VocabTables:
    """`tables[i]` is [places, vocab] of dtype i; a claimed place starts as zeros."""

    def __init__(self, max_rows: int, vocab_size: int, dtypes: Sequence[torch.dtype], device: torch.device) -> None:
        self.tables = [torch.zeros((0, vocab_size), dtype=dtype, device=device) for dtype in dtypes]
        self._place_of_row = torch.full((max_rows,), -1, dtype=torch.int64, device=device)
        self._places: dict[int, int] = {}
        self._free: list[int] = []

    def claim(self, row: int) -> list[Tensor]:
        """One zeroed [vocab] view of each table for the row."""
        assert row not in self._places, f"row {row} has a place already"
        if not self._free:
            self._grow()
        place = self._places[row] = self._free.pop()
        self._place_of_row[row] = place
        return [table[place].zero_() for table in self.tables]

    def release(self, row: int) -> None:
        """Rows without a place are fine."""
        place = self._places.pop(row, None)
        if place is not None:
            self._free.append(place)
            self._place_of_row[row] = -1

    def places(self, rows: Tensor) -> Tensor:
        """[samples] int64: where in the tables each of `rows` [samples] int64 is; -1: nowhere."""
        return self._place_of_row[rows]

    def find(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of `rows` [samples] int64 those with a place: (their positions in `rows` [m], their places [m])."""
        places = self._place_of_row[rows]
        held = (places >= 0).nonzero().squeeze(-1)
        return held, places[held]

    def _grow(self) -> None:
        old = self.tables[0].shape[0]
        more = max(old, 1)
        self.tables = [
            torch.cat([table, torch.zeros_like(table[:1]).expand(more, -1)])
            if old
            else torch.zeros((more, table.shape[1]), dtype=table.dtype, device=table.device)
            for table in self.tables
        ]
        self._free = list(range(old + more - 1, old - 1, -1))
