"""Changes to single logits: logit_bias, stop ids before min_tokens, bad words. Used by the sampler alone.

Owns entries (row, token id, value, …) of the rows that have any: on the host by row, on the device as flat lists, which
are sent anew when they changed. A step applies the whole lists, without a loop over rows: an entry of a row that is not
in the step changes nothing. A token is masked by a large finite value, not -inf, so that a row in which everything is
masked still has a distribution.

`apply`, `record`, `take` and `put` are work of the device, everything else is the host's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MASKED = -1e30
FOREVER = 2**62
_UNCHANGED = -0.0
"""Added to any number it gives that number, be it -0.0."""
_ANY = -1
_NOTHING = -2

Ints = NDArray[np.int64]
Arrays = list[NDArray[np.int64] | NDArray[np.float32]]


def _flat(rows: dict[int, int]) -> Ints:
    """Row → its number of entries; → the row of each entry."""
    return np.repeat(np.array(list(rows), np.int64), np.array(list(rows.values()), np.int64))


def _add(logits: Tensor, places: Tensor, tokens: Tensor, values: Tensor) -> None:
    """In place: `values` at (places, tokens), which may name one logit repeatedly; places < 0: that of nobody.

    (In one line, since an accumulating index_put_ reads from the device in many versions of PyTorch.)"""
    at = torch.add(tokens, places, alpha=logits.shape[1])
    values.masked_fill_(at < 0, _UNCHANGED)
    logits.view(-1).index_add_(0, at.clamp_min_(0), values)


@dataclass
class _Edits:
    """Of one row."""

    tokens: list[int]
    values: list[float]
    until: list[int]


class LogitEdits:
    """Adds `value` to the logit of a token while the row has fewer than `until` output tokens."""

    def __init__(self) -> None:
        self._of_row: dict[int, _Edits] = {}
        self.changed = False
        """The host knows of other entries than the device: `news` are to be sent, for `take`, before `apply`."""
        self._there: tuple[Tensor, ...] = ()  # rows, tokens, values f32, until: [entries]

    def add(self, row: int, tokens: Sequence[int], values: Sequence[float], until: int) -> None:
        edits = self._of_row.setdefault(row, _Edits([], [], []))
        edits.tokens += tokens
        edits.values += values
        edits.until += [until] * len(tokens)
        self.changed = True

    def release(self, row: int) -> None:
        if self._of_row.pop(row, None) is not None:
            self.changed = True

    def news(self) -> Arrays:
        edits = self._of_row.values()
        return [
            _flat({row: len(each.tokens) for row, each in self._of_row.items()}),
            np.array([token for each in edits for token in each.tokens], np.int64),
            np.array([value for each in edits for value in each.values], np.float32),
            np.array([until for each in edits for until in each.until], np.int64),
        ]

    def take(self, news: list[Tensor]) -> None:
        self._there = tuple(news)

    def apply(self, place_of_row: Tensor, num_outputs: Tensor, logits: Tensor) -> None:
        """In place on logits [samples, vocab]; place_of_row [rows]: each row's place in logits, -1: none; num_outputs
        [rows]. All int64."""
        rows, tokens, values, until = self._there
        values = values.masked_fill(until <= num_outputs.index_select(0, rows), _UNCHANGED)
        _add(logits, place_of_row.index_select(0, rows), tokens, values)


class BadWords:
    """Masks the last token of a sequence when the row's latest output tokens are the ones before it."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._words: dict[int, Sequence[Sequence[int]]] = {}
        self._width = 0
        self.changed = False
        """As LogitEdits.changed."""
        self._tail = torch.full((max_rows, 0), _NOTHING, dtype=torch.int64, device=device)  # [rows, width]
        self._there: tuple[Tensor, ...] = ()  # rows, last: [entries]; before [entries, width], _ANY at the left

    def add(self, row: int, words: Sequence[Sequence[int]]) -> None:
        """`words`: sequences of two or more ids."""
        self._words[row] = words
        self._width = max(self._width, max(len(word) for word in words) - 1)
        self.changed = True

    def release(self, row: int) -> None:
        if self._words.pop(row, None) is not None:
            self.changed = True

    def tail(self, output_ids: Sequence[int]) -> list[int]:
        """Of a row's output so far as many of the latest as matter, for `put`."""
        return [_NOTHING] * (self._width - len(output_ids)) + list(output_ids[max(len(output_ids) - self._width, 0) :])

    def news(self) -> Arrays:
        words = [word for of_row in self._words.values() for word in of_row]
        before = [[_ANY] * (self._width - len(word) + 1) + [*word[:-1]] for word in words]
        return [
            _flat({row: len(of_row) for row, of_row in self._words.items()}),
            np.array([word[-1] for word in words], np.int64),
            np.array(before, np.int64).reshape(len(words), self._width),
        ]

    def take(self, news: list[Tensor]) -> None:
        self._there = tuple(news)
        self._widen(news[2].shape[1])

    def put(self, rows: Tensor, tails: Tensor) -> None:
        """rows [n], tails [n, width] int64: the latest output of rows that were admitted."""
        self._widen(tails.shape[1])
        self._tail.index_copy_(0, rows, tails)

    def apply(self, place_of_row: Tensor, logits: Tensor) -> None:
        """In place on logits [samples, vocab]; place_of_row as in LogitEdits."""
        rows, last, before = self._there
        hit = ((before == _ANY) | (before == self._tail.index_select(0, rows))).all(-1)
        values = torch.full_like(last, _UNCHANGED, dtype=torch.float32).masked_fill_(hit, MASKED)
        _add(logits, place_of_row.index_select(0, rows), last, values)

    def record(self, rows: Tensor, token_ids: Tensor) -> None:
        """rows, token_ids [samples] int64."""
        latest = self._tail.index_select(0, rows)[:, 1:]
        self._tail.index_copy_(0, rows, torch.cat([latest, token_ids.unsqueeze(-1)], dim=-1))

    @torch.inference_mode(False)  # or `put` outside of that mode could not write to it
    def _widen(self, width: int) -> None:
        wider = width - self._tail.shape[1]
        if wider > 0:
            self._tail = torch.nn.functional.pad(self._tail, (wider, 0), value=_NOTHING)
