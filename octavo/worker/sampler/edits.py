"""Changes to single logits: logit_bias, stop ids before min_tokens, bad words. Used by the sampler alone.

Owns flat lists of (row, token id, value, …) entries on the device, changed at admit and release only; a step picks
the entries of its rows by one gather, without a loop over rows. A token is masked by a large finite value, not -inf,
so that a row in which everything is masked still has a distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASKED = -1e30
FOREVER = 2**62
_ANY = -1
_NOTHING = -2


def _of_step(entry_rows: Tensor, rows: Tensor, max_rows: int) -> tuple[Tensor, Tensor]:
    """Entries that belong to the step's rows: (positions of the entries, their places in `rows`)."""
    place = torch.full((max_rows,), -1, dtype=torch.int64, device=rows.device)
    place[rows] = torch.arange(rows.shape[0], device=rows.device)
    places = place[entry_rows]
    found = (places >= 0).nonzero().squeeze(-1)
    return found, places[found]


class LogitEdits:
    """Adds `value` to the logit of a token while the row has fewer than `until` output tokens."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._max_rows = max_rows
        self._device = device
        self._rows = torch.empty(0, dtype=torch.int64, device=device)
        self._tokens = torch.empty(0, dtype=torch.int64, device=device)
        self._values = torch.empty(0, dtype=torch.float32, device=device)
        self._until = torch.empty(0, dtype=torch.int64, device=device)

    def add(self, row: int, tokens: list[int], values: list[float], until: int) -> None:
        self._rows = torch.cat([self._rows, torch.full((len(tokens),), row, device=self._device)])
        self._tokens = torch.cat([self._tokens, torch.tensor(tokens, dtype=torch.int64, device=self._device)])
        self._values = torch.cat([self._values, torch.tensor(values, dtype=torch.float32, device=self._device)])
        self._until = torch.cat([self._until, torch.full((len(tokens),), until, device=self._device)])

    def release(self, row: int) -> None:
        keep = self._rows != row
        self._rows, self._tokens = self._rows[keep], self._tokens[keep]
        self._values, self._until = self._values[keep], self._until[keep]

    def apply(self, rows: Tensor, num_outputs: Tensor, logits: Tensor) -> None:
        """In place on logits [samples, vocab]; rows, num_outputs [samples] int64."""
        entries, places = _of_step(self._rows, rows, self._max_rows)
        values = self._values[entries].masked_fill(self._until[entries] <= num_outputs[places], 0.0)
        logits.index_put_((places, self._tokens[entries]), values, accumulate=True)


class BadWords:
    """Masks the last token of a sequence when the row's latest output tokens are the ones before it."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._max_rows = max_rows
        self._device = device
        self._rows = torch.empty(0, dtype=torch.int64, device=device)
        self._last = torch.empty(0, dtype=torch.int64, device=device)
        self._before = torch.empty((0, 0), dtype=torch.int64, device=device)  # [entries, width], _ANY at the left
        self._tail = torch.full((max_rows, 0), _NOTHING, dtype=torch.int64, device=device)  # [rows, width]

    def add(self, row: int, words: list[list[int]], output_ids: list[int]) -> None:
        """`words`: sequences of two or more ids. `output_ids`: the row's output so far."""
        width = max(self._tail.shape[1], max(len(word) for word in words) - 1)
        self._tail = _pad_left(self._tail, width, _NOTHING)
        self._before = _pad_left(self._before, width, _ANY)
        tail = ([_NOTHING] * width + output_ids)[-width:]
        self._tail[row] = torch.tensor(tail, dtype=torch.int64, device=self._device)
        before = [[_ANY] * (width - len(word) + 1) + word[:-1] for word in words]
        self._before = torch.cat([self._before, torch.tensor(before, dtype=torch.int64, device=self._device)])
        self._last = torch.cat([self._last, torch.tensor([w[-1] for w in words], device=self._device)])
        self._rows = torch.cat([self._rows, torch.full((len(words),), row, device=self._device)])

    def release(self, row: int) -> None:
        keep = self._rows != row
        self._rows, self._last, self._before = self._rows[keep], self._last[keep], self._before[keep]

    def apply(self, rows: Tensor, logits: Tensor) -> None:
        """In place on logits [samples, vocab]; rows [samples] int64."""
        entries, places = _of_step(self._rows, rows, self._max_rows)
        before, tail = self._before[entries], self._tail[self._rows[entries]]
        hit = ((before == _ANY) | (before == tail)).all(-1)
        values = torch.zeros_like(hit, dtype=logits.dtype).masked_fill_(hit, MASKED)
        logits.index_put_((places, self._last[entries]), values, accumulate=True)

    def record(self, rows: Tensor, token_ids: Tensor) -> None:
        if self._tail.shape[1]:
            self._tail[rows] = torch.cat([self._tail[rows, 1:], token_ids.unsqueeze(-1)], dim=-1)


def _pad_left(x: Tensor, width: int, value: int) -> Tensor:
    return torch.nn.functional.pad(x, (width - x.shape[1], 0), value=value)
