"""Runs plans: permanent rows, block copies, the step over them, the sampler, in that order. Owned by worker/worker.

Invariant: nothing here decides; every state change is one that the plan names, plus the sampled tokens. When a plan
raises, the rows it touched are to be released; `release` of any row is always allowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.recorded import Recorded, Steps
from octavo.models.decoder import Model
from octavo.types import TokenLogprobs
from octavo.wire.plan import BlockCopy, Masks, Plan, Result
from octavo.worker.batch import Batch
from octavo.worker.pooling import Pooling
from octavo.worker.sampler import Sampler


class Runner:
    """`kv`: per layer [2, blocks, ...]; `steps` compute over them; `recorded`: the same, when it takes but one call."""

    def __init__(
        self,
        model: Model,
        kv: Sequence[Tensor],
        batch: Batch,
        sampler: Sampler,
        steps: Steps,
        recorded: Recorded | None = None,
    ) -> None:
        self._model, self._kv = model, kv
        self._batch, self._sampler = batch, sampler
        self._steps, self._recorded = steps, recorded
        self._pooling = Pooling()
        self.workspace = recorded.nbytes if recorded is not None else None
        """Bytes the largest step takes; None: it was not recorded, and nobody knows."""

    def run(self, plan: Plan, masks: Masks | None = None) -> Result:
        """Applies and computes one plan."""
        self._apply(plan)
        if not plan.run:
            return Result(plan.index)
        rows = [run.row for run in plan.run]
        counts = [run.num_tokens for run in plan.run]
        samples = [run.samples for run in plan.run]
        sampling = rows if all(samples) else [run.row for run in plan.run if run.samples]
        plain = self._sampler.is_plain(sampling) and not self._batch.scored and not self._pooling.rows
        if self._recorded is None or not plain:
            return self._run_in_parts(plan, (rows, counts, samples), sampling, masks)
        token_ids = self._recorded.step(rows, counts, samples, masks)
        self._sampler.check(sampling, token_ids)
        return Result(plan.index, token_ids, [None] * len(token_ids))

    @torch.inference_mode()
    def _run_in_parts(
        self, plan: Plan, runs: tuple[list[int], list[int], list[bool]], sampling: list[int], masks: Masks | None
    ) -> Result:
        """Where the sampler needs the logits, or the hidden states of a prompt are wanted."""
        self._steps.begin(*runs, whole=bool(self._batch.scored or self._pooling.rows))
        prompt_logprobs = self._prompt_logprobs(*runs[:2]) if self._batch.scored else {}
        embeddings = self._embeddings(*runs[:2]) if self._pooling.rows else {}
        allowed = [None] * len(sampling) if masks is None else masks()
        token_ids: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        for at in range(0, len(sampling), self._steps.chunk):
            part = sampling[at : at + self._steps.chunk]
            found = self._sampler.sample(part, self._steps.logits(at, len(part)), allowed[at : at + len(part)])
            token_ids += found[0]
            logprobs += found[1]
        self._steps.advance(token_ids)
        return Result(plan.index, token_ids, logprobs, prompt_logprobs, embeddings)

    def _apply(self, plan: Plan) -> None:
        for row in plan.release:
            self._batch.release(row)
            self._sampler.release(row)
            self._pooling.release(row)
        for admit in plan.admit:
            self._batch.admit(admit)
            self._sampler.admit(admit)
            self._pooling.admit(admit)
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

    def _embeddings(self, rows: list[int], counts: list[int]) -> dict[int, bytes]:
        """Of rows whose prompt ends here."""
        found: dict[int, bytes] = {}
        hidden, start = self._steps.hidden(), 0
        for row, num_tokens in zip(rows, counts, strict=True):
            if row in self._pooling.rows:
                num_prompt = int(self._batch.num_prompt[row])
                ends = int(self._batch.num_computed[row]) + num_tokens >= num_prompt
                part = hidden[start : start + num_tokens]
                if (embedding := self._pooling.add(row, part, num_prompt, ends)) is not None:
                    found[row] = embedding
            start += num_tokens
        return found

    def _prompt_logprobs(self, rows: list[int], counts: list[int]) -> dict[int, list[TokenLogprobs]]:
        """For rows that asked: what the computed positions say about the prompt token after each."""
        found: dict[int, list[TokenLogprobs]] = {}
        hidden, start = self._steps.hidden(), 0
        for row, num_tokens in zip(rows, counts, strict=True):
            num_top = int(self._batch.prompt_logprobs[row])
            first = int(self._batch.num_computed[row])
            count = min(num_tokens, int(self._batch.num_prompt[row]) - 1 - first)
            if num_top >= 0 and count > 0:
                following = self._batch.token_ids[row, first + 1 : first + 1 + count].tolist()
                found[row] = self._score(hidden[start : start + count], following, num_top)
            if first + num_tokens >= int(self._batch.num_prompt[row]) - 1:
                self._batch.scored.discard(row)
            start += num_tokens
        return found

    def _score(self, hidden: Tensor, following: list[int], num_top: int) -> list[TokenLogprobs]:
        """A few positions at a time: the logits of a whole prompt would be gigabytes."""
        scored: list[TokenLogprobs] = []
        for at in range(0, len(following), self._steps.chunk):
            part = slice(at, at + self._steps.chunk)
            scored += self._sampler.prompt_logprobs(self._model.logits(hidden[part]), following[part], num_top)
        return scored
