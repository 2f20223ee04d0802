"""Verifies drafts: how much of what was proposed for a row is what it samples itself.

The samples of a run with a draft are one behind its last certain token, and one behind each token of the draft. The
sampler is asked for one place after the other, of all rows whose draft has held so far: at each place a row is in the
state that it would be in without a draft, and its noise is a function of seed and index. So the tokens never hang on
what was proposed, and greedy rows and sampled ones, with whatever settings, are verified by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.kernels.recorded import Steps
from octavo.types import TokenLogprobs
from octavo.worker.queue import Queue
from octavo.worker.sampler import Sampled, Sampler


@dataclass
class Verified:
    """`tokens`: the part of the row's draft that holds, and one more; `logprobs` of each, where they are wanted."""

    row: int
    draft: Sequence[int]
    first: int
    """Its first sample among those of the step."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        return len(self.draft) + 1

    @property
    def holds(self) -> bool:
        """There is another place, and all before it are as proposed."""
        done = len(self.tokens)
        return done <= len(self.draft) and list(self.draft[:done]) == self.tokens


class Verifier:
    def __init__(self, steps: Steps, sampler: Sampler, queue: Queue) -> None:
        self._steps, self._sampler, self._queue = steps, sampler, queue

    def verify(self, rows: list[int], drafts: list[Sequence[int]], masks: Sequence[bytes | None]) -> list[Verified]:
        """Of a step that was begun, for each of `rows`, which sample, what it samples beside its draft. `masks`: one
        for each sample, or none at all. Waits for a device, once for each place. Raises EngineError when logits are
        not numbers."""
        claims, first = [], 0
        for row, draft in zip(rows, drafts, strict=True):
            claims.append(Verified(row, draft, first))
            first += claims[-1].num_samples
        for group in self._groups(claims):
            logits = self._queue.launch(lambda group=group: self._logits(group))  # type: ignore[misc]
            active = group
            while active:
                self._sample(active, logits, group[0].first, masks)
                active = [claim for claim in active if claim.holds]
        return claims

    def _groups(self, claims: list[Verified]) -> Iterator[list[Verified]]:
        """Rows in order, as many together as the logits of fit."""
        group: list[Verified] = []
        for claim in claims:
            if group and claim.first + claim.num_samples - group[0].first > self._steps.chunk:
                yield group
                group = []
            group.append(claim)
        if group:
            yield group

    def _logits(self, group: list[Verified]) -> Tensor:
        """[samples of the group, vocab]"""
        start, end, chunk = group[0].first, group[-1].first + group[-1].num_samples, self._steps.chunk
        if end - start <= chunk:
            return self._steps.logits(start, end - start)
        return torch.cat([self._steps.logits(at, min(chunk, end - at)).clone() for at in range(start, end, chunk)])

    def _sample(self, active: list[Verified], logits: Tensor, first: int, masks: Sequence[bytes | None]) -> None:
        """The next token of each."""
        rows = [claim.row for claim in active]
        places = [claim.first + len(claim.tokens) for claim in active]
        allowed = [masks[place] for place in places] if masks else []

        def launch() -> Sampled:
            at = torch.tensor([place - first for place in places], device=logits.device)
            return self._sampler.launch(rows, logits.index_select(0, at), allowed)

        sampled = self._queue.launch(launch)
        token_ids, logprobs = self._sampler.read(sampled, self._queue.download(sampled.tensors()).read())
        for claim, token_id, entry in zip(active, token_ids, logprobs, strict=True):
            claim.tokens.append(token_id)
            if entry is not None:
                claim.logprobs.append(entry)
