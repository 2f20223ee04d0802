"""Runs plans: permanent rows, block copies, the step over them, the sampler, in that order.

A plan has two halves: `launch` gives all of its work, `finish` reads what it sampled; where it is masked, the work
behind the model is given by `sample`. On the CPU all is done by the end of the first; on a device the host may launch
the next plan in between, so nothing in it hangs on a value that is computed there (prompt log-probabilities and
embeddings do, and wait).

Invariant: nothing here decides; every state change is one that the plan names, plus the sampled tokens. When a plan
raises, its rows are left out of the plans that were made before that was known, until they are released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress

import torch
from torch import Tensor

from octavo.kernels.recorded import Runs, Steps
from octavo.kernels.step import LayerCache, PagedCache
from octavo.models.decoder import Model
from octavo.types import TokenLogprobs
from octavo.wire.plan import Admit, BlockCopy, Masks, Plan, Result, Run, Save
from octavo.worker.batch import Batch
from octavo.worker.drafts import Verifier
from octavo.worker.kv import Checkpoints
from octavo.worker.pooling import Pooling
from octavo.worker.queue import HostQueue, Queue, Readback
from octavo.worker.sampler import Sampled, Sampler


@dataclass
class Launched:
    """A plan whose work is given."""

    plan: Plan
    runs: Runs
    """Without those of `left_out`."""
    left_out: frozenset[int] = frozenset()
    """Rows of the plan that are not run."""
    drafts: list[Sequence[int]] = field(default_factory=list)
    """Of each run that samples, if any has one."""
    plain: bool = False
    """Its tokens hang on temperature, top_k, top_p and min_p alone, and masks."""
    sampled: list[Sampled] = field(default_factory=list)
    readback: Readback | None = None
    """Of the tensors of `sampled`, in order."""
    tokens: list[tuple[int, ...]] | None = None
    """As in Result, known already."""
    logprobs: list[tuple[TokenLogprobs, ...] | None] = field(default_factory=list)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    embeddings: dict[int, bytes] = field(default_factory=dict)

    @property
    def sampling(self) -> list[int]:
        """The rows that sample."""
        runs = self.runs
        return runs.rows if all(runs.samples) else list(compress(runs.rows, runs.samples))


class Runner:
    """`kv`: what each layer keeps; `steps` compute over it, reached by `queue`. `checkpoints`: of states, where layers
    keep some."""

    def __init__(
        self,
        model: Model,
        kv: Sequence[LayerCache],
        batch: Batch,
        sampler: Sampler,
        steps: Steps,
        queue: Queue | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._model, self._kv = model, kv
        self._batch, self._sampler = batch, sampler
        self._steps = steps
        self._queue = queue or HostQueue()
        self._checkpoints = checkpoints
        self._pooling = Pooling()
        self._verifier = Verifier(steps, sampler, self._queue)
        self.num_groups = len(batch.windows)
        self._broken: set[int] = set()

    @property
    def workspace(self) -> int | None:
        """Bytes the largest step takes, where that is known beforehand."""
        return self._steps.nbytes

    def run(self, plan: Plan, masks: Masks | None = None) -> Result:
        """Applies and computes one plan."""
        launched = self.launch(plan)
        if masks is not None:
            self.sample(launched, masks)
        return self.finish(launched)

    def launch(self, plan: Plan) -> Launched:
        """Gives the plan's work; of one that is masked, what comes before `sample`. Raises whatever it raises."""
        try:
            self._apply(plan)
            runs, left_out = plan.run, self._broken.intersection(run.row for run in plan.run) if self._broken else ()
            if left_out:
                runs = tuple(run for run in runs if run.row not in left_out)
            listed = Runs([run.row for run in runs], [run.num_tokens for run in runs], [run.samples for run in runs])
            launched = Launched(plan, listed, frozenset(left_out))
            if any(run.draft for run in runs):
                self._draft(launched, runs)
            if runs:
                self._begin(launched)
            if plan.save:
                self._save(plan.save)
            return launched
        except BaseException:
            self._broken.update(run.row for run in plan.run)
            raise

    def sample(self, launched: Launched, masks: Masks) -> None:
        """Gives the rest of the work of a plan that is masked, the last that was launched. Raises as `launch` does."""
        plan, allowed = launched.plan, masks.allowed
        try:
            if launched.left_out:
                allowed = tuple(compress(allowed, _kept(plan.run, launched.left_out)))
            if launched.runs.rows:
                self._sample(launched, allowed)
        except BaseException:
            self._broken.update(run.row for run in plan.run)
            raise

    def finish(self, launched: Launched) -> Result:
        """Waits for what was sampled. Raises EngineError where logits were not numbers, DeviceLost."""
        plan, tokens, logprobs = launched.plan, launched.tokens, launched.logprobs
        if tokens is None:
            tokens = []
            tensors = iter(() if launched.readback is None else launched.readback.read())
            for sampled in launched.sampled:
                token_ids, entries = self._sampler.read(sampled, [next(tensors) for _ in sampled.tensors()])
                tokens += zip(token_ids)
                logprobs += [None if entry is None else (entry,) for entry in entries]
        if launched.left_out:
            tokens, logprobs = _with_gaps(plan.run, launched.left_out, tokens, logprobs)
        return Result(plan.index, tuple(tokens), tuple(logprobs), launched.prompt_logprobs, launched.embeddings)

    def _draft(self, launched: Launched, runs: Sequence[Run]) -> None:
        """The drafts are part of what is computed."""
        assert all(run.samples for run in runs if run.draft), "a draft behind a run that does not sample"
        launched.drafts = [run.draft for run in runs if run.samples]
        for at, run in enumerate(runs):
            if run.draft:
                self._batch.draft(run.row, run.draft)
                launched.runs.counts[at] += len(run.draft)
                launched.runs.samples[at] += len(run.draft)

    def _begin(self, launched: Launched) -> None:
        """All of the step, in one if that can be; of a plan that is masked, the model."""
        whole = bool(self._batch.scored or self._pooling.rows)
        launched.plain = not whole and not launched.drafts and self._sampler.is_plain(launched.sampling)
        masked = launched.plan.masked
        if launched.plain and not masked and (token_ids := self._steps.fused(launched.runs)) is not None:
            self._take(launched, token_ids)
        else:
            self._begin_in_parts(launched, whole)
            if not masked:
                self._sample(launched, ())

    @torch.inference_mode()
    def _begin_in_parts(self, launched: Launched, whole: bool) -> None:
        """Where the sampler needs the logits, or the hidden states of a prompt are wanted."""
        runs = launched.runs
        self._steps.begin(runs, whole)
        if self._batch.scored:
            launched.prompt_logprobs = self._queue.launch(lambda: self._prompt_logprobs(runs.rows, runs.counts))
        if self._pooling.rows:
            launched.embeddings = self._queue.launch(lambda: self._embeddings(runs.rows, runs.counts))

    def _sample(self, launched: Launched, allowed: Sequence[bytes | None]) -> None:
        """The rest of a step that was begun. `allowed`: a mask for each sample, or none at all."""
        if launched.plain and (token_ids := self._steps.sample(allowed)) is not None:
            self._take(launched, token_ids)
        else:
            self._sample_in_parts(launched, allowed)

    @torch.inference_mode()
    def _sample_in_parts(self, launched: Launched, allowed: Sequence[bytes | None]) -> None:
        queue, rows = self._queue, launched.sampling
        if launched.drafts:
            self._verify(launched, allowed)
            return
        launched.sampled = queue.launch(lambda: self._sample_chunks(rows, allowed))
        token_ids = queue.launch(lambda: _joined(launched.sampled))
        self._steps.advance(token_ids)
        self._read_back(launched)

    def _verify(self, launched: Launched, allowed: Sequence[bytes | None]) -> None:
        found = self._verifier.verify(launched.sampling, launched.drafts, allowed)
        self._batch.settle(launched.runs, [each.tokens for each in found])
        self._steps.settled([each.tokens[-1] for each in found])
        launched.tokens = [tuple(each.tokens) for each in found]
        launched.logprobs = [tuple(each.logprobs) or None for each in found]
        self._read_back(launched)

    def _take(self, launched: Launched, token_ids: list[int] | Tensor) -> None:
        """What a step has sampled by itself."""
        if isinstance(token_ids, Tensor):
            launched.sampled = [Sampled(launched.sampling, token_ids)]
            self._read_back(launched)
        else:
            launched.tokens, launched.logprobs = list(zip(token_ids)), [None] * len(token_ids)
            self._sampler.check(launched.sampling, token_ids)

    @torch.inference_mode()
    def _read_back(self, launched: Launched) -> None:
        """Also where nothing was sampled: that the step is done has to be known."""
        launched.readback = self._queue.download([tensor for part in launched.sampled for tensor in part.tensors()])

    def _sample_chunks(self, rows: list[int], allowed: Sequence[bytes | None]) -> list[Sampled]:
        """As many at a time as the logits of fit."""
        found = []
        for at in range(0, len(rows), self._steps.chunk):
            part = rows[at : at + self._steps.chunk]
            logits = self._steps.logits(at, len(part))
            found.append(self._sampler.launch(part, logits, allowed[at : at + len(part)]))
        return found

    def _apply(self, plan: Plan) -> None:
        """Releases first, for which nothing is needed that can fail: nobody would repeat them."""
        for row in plan.release:
            self._batch.release(row)
            self._pooling.release(row)
            self._sampler.release(row)
            self._broken.discard(row)
        for admit in plan.admit:
            self._batch.admit(admit)
            self._pooling.admit(admit)
        for extend in plan.extend:
            self._batch.extend(extend)
        self._queue.begin(plan)
        self._sampler.admit_all(plan.admit)
        if self._checkpoints is not None:
            self._load([admit for admit in plan.admit if admit.checkpoint is not None])
        if plan.copies:
            self._queue.launch(lambda: self._copy(plan.copies))

    def _load(self, admits: Sequence[Admit]) -> None:
        checkpoints = self._checkpoints
        if admits and checkpoints is not None:
            places = [admit.checkpoint for admit in admits if admit.checkpoint is not None]
            self._queue.launch(lambda: checkpoints.load(places, [admit.row for admit in admits]))

    def _save(self, saves: Sequence[Save]) -> None:
        checkpoints = self._checkpoints
        assert checkpoints is not None, "a plan saves states, and no layer keeps any"
        rows, places = [save.row for save in saves], [save.checkpoint for save in saves]
        self._queue.launch(lambda: checkpoints.save(rows, places))

    def _copy(self, copies: Sequence[BlockCopy]) -> None:
        """All sources are read before any destination is written."""
        for cache in dict.fromkeys(self._kv):
            if not isinstance(cache, PagedCache):
                continue
            if wanted := [copy for copy in copies if copy.group == cache.group]:
                src, dst = (torch.tensor(ids, device=cache.blocks.device) for ids in zip(
                    *((copy.src, copy.dst) for copy in wanted), strict=True
                ))  # fmt: skip
                cache.blocks.index_copy_(1, dst, cache.blocks.index_select(1, src))

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


def _joined(parts: list[Sampled]) -> Tensor:
    """[samples] int64"""
    if len(parts) == 1:
        return parts[0].token_ids
    return torch.cat([part.token_ids for part in parts]) if parts else torch.empty(0, dtype=torch.int64)


def _kept(runs: Sequence[Run], left_out: frozenset[int]) -> list[bool]:
    """Of each sample of a plan, whether it is computed."""
    return [run.row not in left_out for run in runs if run.samples for _ in range(len(run.draft) + 1)]


def _with_gaps(
    runs: Sequence[Run],
    left_out: frozenset[int],
    tokens: list[tuple[int, ...]],
    logprobs: list[tuple[TokenLogprobs, ...] | None],
) -> tuple[list[tuple[int, ...]], list[tuple[TokenLogprobs, ...] | None]]:
    """A token that nobody waits for in the place of each row that was left out."""
    found = iter(zip(tokens, logprobs, strict=True))
    filled = [((0,), None) if run.row in left_out else next(found) for run in runs if run.samples]
    return [of_run for of_run, _ in filled], [entries for _, entries in filled]
