"""Decode steps as graphs: one pair for each size of a batch, captured at start, replayed for any batch that fits by
filling it up with the padding row. Owned by worker/device_steps.py.

The first graph of a pair makes the step's inputs from the device's own rows and runs the model; the second computes
logits, samples and moves the rows on. Where a row's sampling needs more than the second knows, only the first is
replayed. Inputs and results live in buffers that all graphs share, so only one step's are valid at a time; replays of
one queue never overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.ops import Ops
from octavo.kernels.rows import DeviceRows
from octavo.kernels.sampling_rows import SamplingRows
from octavo.kernels.step import LayerCache
from octavo.models.decoder import Model
from octavo.worker.device import Device, Graph
from octavo.worker.staging import Staging

EVERY = 8
"""From this many rows on, sizes are multiples of it; below, powers of two. Beyond 256 rows only every 32nd."""


def bucket_sizes(max_rows: int) -> list[int]:
    """Sizes of batches that get a graph, ascending; the last is `max_rows`."""
    small = [size for size in (1, 2, 4) if size < max_rows]
    middle = list(range(EVERY, min(max_rows, 256), EVERY))
    return [*small, *middle, *range(256, max_rows, 4 * EVERY), max_rows]


@dataclass(frozen=True)
class Computation:
    """What a decode step is computed with."""

    model: Model
    ops: Ops
    kv: Sequence[LayerCache]
    state: DeviceRows
    sampling_floats: Tensor  # [rows, n] f32: temperature, top_p, min_p, then what is not needed here
    block_size: int
    max_model_len: int


class DecodeGraphs:
    """Pairs for `sizes`, ascending. `hidden_size`: the model's."""

    def __init__(self, parts: Computation, device: Device, sizes: Sequence[int], hidden_size: int) -> None:
        self.parts, self._device, self._sizes = parts, device, list(sizes)
        where, largest = device.where, self._sizes[-1]
        self._rows = torch.full((largest,), parts.state.padding, dtype=torch.int32, device=where)
        self.sampled = torch.zeros((largest, hidden_size), dtype=parts.ops.activations, device=where)
        """[size, hidden] of the last replay."""
        self._token_ids = torch.zeros(largest, dtype=torch.int64, device=where)
        self._sent: list[int] = []
        self._pairs: dict[int, tuple[Graph, Graph]] = {}
        self._pool = device.graph_pool()

    @property
    def sizes(self) -> list[int]:
        """Of the pairs that are captured."""
        return sorted(self._pairs)

    def capture(self, sizes: Sequence[int] | None = None, budget: int | None = None) -> int:
        """All of them, or `sizes`, the largest first: what it needs in memory the others use again. Stops before the
        next when they have taken more than `budget` bytes; → bytes taken. Runs each once, on rows that are padding."""
        free, taken = self._device.memory().free, 0
        for size in sorted(sizes or self._sizes, reverse=True):
            if budget is not None and taken > budget:
                break
            self._pairs[size] = (
                self._device.capture(partial(self._forward, size), self._pool),
                self._device.capture(partial(self._sample, size), self._pool),
            )
            taken = free - self._device.memory().free
        return taken

    def fits(self, num_rows: int) -> bool:
        return 0 < num_rows <= max(self._pairs, default=0)

    def forward(self, rows: list[int], staging: Staging) -> None:
        """The next token of each row; what comes out stands in `sampled`."""
        size = self._size(len(rows))
        wanted = rows + [self.parts.state.padding] * (size - len(rows))
        if wanted != self._sent[:size]:
            staging.upload_to(np.array(wanted, np.int32), self._rows[:size])
            self._sent[:size] = wanted
        self._pairs[size][0].replay()

    def sample(self, num_rows: int) -> Tensor:
        """[rows] int64: the tokens after the last `forward`; the rows have moved on. Valid until the next call."""
        self._pairs[self._size(num_rows)][1].replay()
        return self._token_ids[:num_rows]

    def _size(self, num_rows: int) -> int:
        return next(size for size in self._sizes if size >= num_rows and size in self._pairs)

    @torch.inference_mode()
    def _forward(self, size: int) -> None:
        parts = self.parts
        step = parts.ops.decode_step(self._rows[:size], parts.state, parts.block_size, parts.max_model_len)
        self.sampled[:size] = parts.model(step, parts.kv)

    @torch.inference_mode()
    def _sample(self, size: int) -> None:
        parts, rows = self.parts, self._rows[:size]
        floats, ints = (x.t().index_select(1, rows) for x in (parts.sampling_floats, parts.state.sampling_ints))
        logits = parts.model.logits(self.sampled[:size])
        chosen = parts.ops.sample(logits, SamplingRows.from_columns(floats, ints))
        self._token_ids[:size] = chosen
        parts.ops.decode_done(rows, chosen, parts.state)
