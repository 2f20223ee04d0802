"""Steps on a device that computes while the host goes on. Implements kernels.recorded.Steps.

A step in which every row computes one token and samples is replayed as a graph (worker/graphs.py); any other runs
operation by operation, its inputs gathered on the host and sent in one copy. The host may be a step ahead: tokens it
does not know yet are -1 in its batch, and are taken from the device's rows. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.kernels.recorded import Runs
from octavo.kernels.step import Step
from octavo.worker.batch import Batch
from octavo.worker.device_queue import DeviceQueue
from octavo.worker.graphs import Computation, DecodeGraphs
from octavo.worker.step import gather

LOGITS_BYTES = 128 << 20
"""Most f32 logits held at once by a step that is no graph."""


class DeviceSteps:
    """`graphs`: captured already; None: every step runs operation by operation (--enforce-eager)."""

    def __init__(
        self, parts: Computation, queue: DeviceQueue, batch: Batch, vocab_size: int, graphs: DecodeGraphs | None
    ) -> None:
        self._parts, self._queue, self._batch, self._graphs = parts, queue, batch, graphs
        self.chunk = max(1, LOGITS_BYTES // (4 * vocab_size))
        self.nbytes: int | None = None
        self._runs = Runs([], [], [])
        self._replayed = False
        self._hidden = self._sampled = torch.empty(0)

    def fused(self, runs: Runs) -> Tensor | None:
        if not self._has_graph(runs):
            return None
        self.begin(runs)
        return self.sample(())

    def begin(self, runs: Runs, whole: bool = False) -> None:
        self._runs = runs
        self._replayed = not whole and self._has_graph(runs)
        if self._replayed and self._graphs is not None:
            self._graphs.forward(runs.rows, self._queue.staging)
            self._sampled = self._graphs.sampled
        else:
            step = gather(self._batch, runs)
            self._queue.launch(lambda: self._compute(step, np.repeat(np.array(runs.rows, np.int64), runs.counts)))

    def sample(self, masks: Sequence[bytes | None]) -> Tensor | None:
        if masks or not self._replayed or self._graphs is None:
            return None
        token_ids = self._graphs.sample(len(self._runs.rows))
        self._batch.advance(self._runs)
        return token_ids

    def hidden(self) -> Tensor:
        return self._hidden

    def logits(self, first: int, count: int) -> Tensor:
        return self._parts.model.logits(self._sampled[first : first + count])

    def advance(self, token_ids: Tensor) -> None:
        """(The sampler has counted the outputs.)"""
        runs = self._runs
        self._batch.advance(runs)
        sampled = [row for row, sample in zip(runs.rows, runs.samples, strict=True) if sample]
        self._queue.launch(lambda: self._move_on(runs.rows, sampled, token_ids))

    def settled(self, last: list[int]) -> None:
        rows = self._runs.rows
        sampled = [row for row, sample in zip(rows, self._runs.samples, strict=True) if sample]

        def move_on() -> None:
            (token_ids,) = self._queue.upload([np.array(last, np.int64)])
            self._move_on(rows, sampled, token_ids)

        self._queue.launch(move_on)

    def _has_graph(self, runs: Runs) -> bool:
        graphs = self._graphs
        return graphs is not None and graphs.fits(len(runs.rows)) and max(runs.counts) == 1 and all(runs.samples)

    def _compute(self, step: Step, row_of: NDArray[np.int64]) -> None:
        """step: on the host; row_of [tokens]."""
        arrays = [getattr(step, name) for name in _ARRAYS]
        arrays += [array for other in step.others for array in (other.slots, other.page_ids)]
        *there, row_at = self._queue.staging.upload([array.numpy() for array in arrays] + [row_of])
        moved = dict(zip(_ARRAYS, there, strict=False))
        token_ids = moved["token_ids"]
        moved["token_ids"] = torch.where(token_ids < 0, self._parts.state.last_token[row_at], token_ids)
        on_host = (step.query_start, step.context_lens, step.page_start)
        step = replace(step, on_host=on_host, others=(), **moved)  # type: ignore[arg-type]  # tensors all
        further = zip(there[len(_ARRAYS) :: 2], there[len(_ARRAYS) + 1 :: 2], strict=True)
        others = [replace(step, slots=at, page_ids=ids, group=i) for i, (at, ids) in enumerate(further, 1)]
        step = replace(step, others=tuple(others))
        self._hidden = self._parts.model(step, self._parts.kv)
        self._sampled = self._parts.ops.gather_rows(self._hidden, step.logits_index)

    def _move_on(self, rows: list[int], sampled: list[int], token_ids: Tensor) -> None:
        state = self._parts.state
        arrays: list[NDArray[np.int64] | NDArray[np.int32]] = [
            np.array(rows, np.int64),
            self._batch.num_computed[rows],
            np.array(sampled, np.int64),
        ]
        at, computed, sampled_at = self._queue.staging.upload(arrays)
        state.num_computed[at] = computed
        if sampled:
            state.last_token[sampled_at] = token_ids.clamp_min(0)


_ARRAYS = (
    "token_ids", "positions", "slots", "query_start", "context_lens", "page_start", "page_ids", "logits_index",
    "rows",
)  # fmt: skip
