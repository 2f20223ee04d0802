"""A step run operation by operation, for backends that cannot record one. Implements kernels.recorded.Steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.ops import Ops
from octavo.kernels.recorded import Runs
from octavo.kernels.step import LayerCache
from octavo.models.decoder import Model
from octavo.worker.batch import Batch
from octavo.worker.step import gather

LOGITS_BYTES = 8 << 20
"""Most f32 logits held at once: of a wide batch or a whole prompt they would be the largest thing in memory."""


class EagerSteps:
    def __init__(self, model: Model, ops: Ops, kv: Sequence[LayerCache], batch: Batch, vocab_size: int) -> None:
        self._model, self._ops, self._kv, self._batch = model, ops, kv, batch
        self.chunk = max(1, LOGITS_BYTES // (4 * vocab_size))
        self.nbytes: int | None = None
        self._runs = Runs([], [], [])
        self._hidden = self._sampled = torch.empty(0)

    def fused(self, runs: Runs) -> None:
        return None

    def begin(self, runs: Runs, whole: bool = False) -> None:
        self._runs = runs
        step = gather(self._batch, runs)
        self._hidden = self._model(step, self._kv)
        self._sampled = self._ops.gather_rows(self._hidden, step.logits_index)

    def sample(self, masks: Sequence[bytes | None]) -> None:
        return None

    def hidden(self) -> Tensor:
        return self._hidden

    def logits(self, first: int, count: int) -> Tensor:
        return self._model.logits(self._sampled[first : first + count])

    def advance(self, token_ids: Tensor) -> None:
        self._batch.advance(self._runs, token_ids.tolist())

    def settled(self, last: list[int]) -> None:
        pass
