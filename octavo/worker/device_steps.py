"""Steps on a device that computes while the host goes on. Made by worker/worker; implements kernels.recorded.Steps.

A step in which every row computes one token and samples is replayed as a graph (worker/graphs.py); any other runs
operation by operation, its inputs gathered on the host and sent in one copy. The host may be a step ahead: tokens it
does not know yet are -1 in its batch, and are taken from the device's rows. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.kernels.step import Step
from octavo.worker.batch import Batch
from octavo.worker.graphs import Computation, DecodeGraphs
from octavo.worker.lane import DeviceLane
from octavo.worker.step import gather

LOGITS_BYTES = 128 << 20
"""Most f32 logits held at once by a step that is no graph."""


class DeviceSteps:
    """`graphs`: captured already; None: every step runs operation by operation (--enforce-eager)."""

    def __init__(
        self, parts: Computation, lane: DeviceLane, batch: Batch, vocab_size: int, graphs: DecodeGraphs | None
    ) -> None:
        self._parts, self._lane, self._batch, self._graphs = parts, lane, batch, graphs
        self.chunk = max(1, LOGITS_BYTES // (4 * vocab_size))
        self._runs: tuple[list[int], list[int], list[bool]] = ([], [], [])
        self._replayed = False
        self._hidden = self._sampled = torch.empty(0)

    def begin(self, rows: list[int], counts: list[int], samples: list[bool], whole: bool = False) -> None:
        self._runs = rows, counts, samples
        graphs = None if whole else self._graphs
        if graphs is not None and graphs.fits(len(rows)) and max(counts) == 1 and all(samples):
            graphs.forward(rows, self._lane.staging)
            self._sampled, self._replayed = graphs.sampled, True
        else:
            self._replayed = False
            step = gather(self._batch, rows, counts, samples)
            self._lane.launch(lambda: self._compute(step, np.repeat(np.array(rows, np.int64), counts)))

    def plain(self) -> Tensor | None:
        if not self._replayed or self._graphs is None:
            return None
        token_ids = self._graphs.sample(len(self._runs[0]))
        self._batch.advance(*self._runs)
        return token_ids

    def hidden(self) -> Tensor:
        return self._hidden

    def logits(self, first: int, count: int) -> Tensor:
        return self._parts.model.logits(self._sampled[first : first + count])

    def advance(self, token_ids: Tensor) -> None:
        """(The sampler has counted the outputs.)"""
        rows, _, samples = self._runs
        self._batch.advance(*self._runs)
        sampled = [row for row, sample in zip(rows, samples, strict=True) if sample]
        self._lane.launch(lambda: self._move_on(rows, sampled, token_ids))

    def _compute(self, step: Step, row_of: NDArray[np.int64]) -> None:
        """step: on the host; row_of [tokens]."""
        there = self._lane.staging.upload([getattr(step, name).numpy() for name in _ARRAYS] + [row_of])
        moved = dict(zip(_ARRAYS, there, strict=False))
        token_ids = moved["token_ids"]
        moved["token_ids"] = torch.where(token_ids < 0, self._parts.state.last_token[there[-1]], token_ids)
        on_host = (step.query_start, step.context_lens, step.page_start)
        step = replace(step, on_host=on_host, **moved)  # type: ignore[arg-type]  # tensors all
        self._hidden = self._parts.model(step, self._parts.kv)
        self._sampled = self._parts.ops.gather_rows(self._hidden, step.logits_index)

    def _move_on(self, rows: list[int], sampled: list[int], token_ids: Tensor) -> None:
        state = self._parts.state
        arrays: list[NDArray[np.int64] | NDArray[np.int32]] = [
            np.array(rows, np.int64),
            self._batch.num_computed[rows],
            np.array(sampled, np.int64),
        ]
        at, computed, sampled_at = self._lane.staging.upload(arrays)
        state.num_computed[at] = computed
        if sampled:
            state.last_token[sampled_at] = token_ids.clamp_min(0)


_ARRAYS = (
    "token_ids", "positions", "slots", "query_start", "context_lens", "page_start", "page_ids", "logits_index",
    "rows",
)  # fmt: skip
