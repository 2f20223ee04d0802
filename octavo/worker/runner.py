"""Runs plans: permanent rows, block copies, gathered step, model, sampler, in that order. Owned by worker/worker.

Invariant: nothing here decides; every state change is one that the plan names, plus the sampled tokens. When a plan
raises, the rows it touched are to be released; `release` of any row is always allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.ops import Ops
from octavo.kernels.step import Step
from octavo.models.decoder import Model
from octavo.types import TokenLogprobs
from octavo.wire.plan import BlockCopy, Plan, Result
from octavo.worker.batch import Batch
from octavo.worker.sampler import Sampler
from octavo.worker.step import gather

LOGITS_BYTES = 8 << 20
"""Most f32 logits held at once: of a wide batch or a whole prompt they would be the largest thing in memory."""


class Runner:
    """`kv`: per layer [2, blocks, block_size, kv_heads, head_dim]."""

    def __init__(self, model: Model, ops: Ops, kv: Sequence[Tensor], batch: Batch, sampler: Sampler) -> None:
        self._model, self._ops, self._kv = model, ops, kv
        self._batch, self._sampler = batch, sampler
        self._logits_rows = max(1, LOGITS_BYTES // (4 * sampler.vocab_size))

    @torch.inference_mode()
    def run(self, plan: Plan) -> Result:
        """Applies and computes one plan."""
        self._apply(plan)
        if not plan.run:
            return Result(plan.index)
        step = gather(self._batch, plan.run, self._batch.block_size)
        hidden = self._model(step, self._kv)
        prompt_logprobs = self._prompt_logprobs(plan, step, hidden)
        rows = [run.row for run in plan.run if run.samples]
        token_ids, logprobs = self._sample(rows, self._ops.gather_rows(hidden, step.logits_index))
        for run in plan.run:
            self._batch.num_computed[run.row] += run.num_tokens
        if rows:
            self._batch.append(np.array(rows, np.int32), token_ids)
        return Result(plan.index, token_ids, logprobs, prompt_logprobs)

    def _sample(self, rows: list[int], hidden: Tensor) -> tuple[list[int], list[TokenLogprobs | None]]:
        """One token per row from hidden [samples, hidden]."""
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        for at in range(0, len(rows), self._logits_rows):
            part = slice(at, at + self._logits_rows)
            found = self._sampler.sample(rows[part], self._model.logits(hidden[part]))
            token_ids += found[0]
            logprobs += found[1]
        return token_ids, logprobs

    def _apply(self, plan: Plan) -> None:
        for row in plan.release:
            self._batch.release(row)
            self._sampler.release(row)
        for admit in plan.admit:
            self._batch.admit(admit)
            self._sampler.admit(admit)
        for extend in plan.extend:
            self._batch.extend(extend)
        if plan.copies:
            self._copy(plan.copies)

    def _copy(self, copies: list[BlockCopy]) -> None:
        """All sources are read before any destination is written."""
        src = torch.tensor([copy.src for copy in copies])
        dst = torch.tensor([copy.dst for copy in copies])
        for pages in self._kv:
            pages.index_copy_(1, dst, pages.index_select(1, src))

    def _prompt_logprobs(self, plan: Plan, step: Step, hidden: Tensor) -> dict[int, list[TokenLogprobs]]:
        """For rows that asked: what the computed positions say about the prompt token after each."""
        found: dict[int, list[TokenLogprobs]] = {}
        starts = step.query_start.tolist()
        for i, run in enumerate(plan.run):
            num_top = int(self._batch.prompt_logprobs[run.row])
            first = int(self._batch.num_computed[run.row])
            count = min(run.num_tokens, int(self._batch.num_prompt[run.row]) - 1 - first)
            if num_top < 0 or count <= 0:
                continue
            following = self._batch.token_ids[run.row, first + 1 : first + 1 + count].tolist()
            found[run.row] = self._score(hidden[starts[i] : starts[i] + count], following, num_top)
        return found

    def _score(self, hidden: Tensor, following: list[int], num_top: int) -> list[TokenLogprobs]:
        """A few positions at a time: the logits of a whole prompt would be gigabytes."""
        scored: list[TokenLogprobs] = []
        for at in range(0, len(following), self._logits_rows):
            part = slice(at, at + self._logits_rows)
            scored += self._sampler.prompt_logprobs(self._model.logits(hidden[part]), following[part], num_top)
        return scored
