"""How a step is computed: the seam between the worker and whoever runs the model, be it operation by operation, by
graphs, or recorded once and replayed (`Ops.record`).

The worker's permanent rows are the inputs, so that a recorded step costs one call with the numbers of the moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from octavo.kernels.step import LayerCache, Step


class StepModel(Protocol):
    """What is recorded: models.decoder.Model, as far as it matters here."""

    def __call__(self, step: Step, kv: Sequence[LayerCache]) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PermanentRows:
    """Arrays over the worker's rows that never move: worker/batch.py's and the sampler's. A recorded step reads them,
    and writes what it computed and sampled."""

    token_ids: Tensor  # [rows, max_model_len + 1] int32
    block_tables: Tensor  # [paged groups, rows, pages] int32
    num_tokens: Tensor  # [rows] int32
    num_computed: Tensor  # [rows] int32
    num_blocks: Tensor  # [rows] int32: in each of the row's tables
    sampling_floats: Tensor  # [rows, n] f32: temperature, top_p, min_p, then what is not needed here
    sampling_ints: Tensor  # [rows, n] int64: top_k, seed, output tokens so far
    windows: Sequence[int | None] = (None,)
    """Of each paged group: what lies behind it in a block table is stale."""


@dataclass(frozen=True)
class Runs:
    """What one step computes: the next counts[i] tokens of rows[i]. With samples[i] they end at the row's last token,
    and logits are wanted of the last samples[i] of them: one, or with a draft one more than it has tokens."""

    rows: list[int]
    counts: list[int]
    samples: list[int]


class Steps(Protocol):
    """One step after the other, each in one of two ways: `fused`, where that has an answer; or in parts: `begin`, then
    `sample`, where that has an answer, or else `hidden` and `logits` as wanted, and `advance`."""

    chunk: int
    """Most samples whose logits are there at once."""

    @property
    def nbytes(self) -> int | None:
        """Of the workspace; None: nobody knows before a step was run."""
        ...

    def fused(self, runs: Runs) -> list[int] | Tensor | None:
        """All of a step without drafts: its tokens are sampled by the rows' temperature, top_k, top_p and min_p alone,
        and the rows advance. [samples] int64, valid until the next step; a list, where the host knows them already.
        Where a token is -1 (logits that are not numbers) no row has advanced. None: nothing was done, this step comes
        in parts. Raises as `begin` does."""
        ...

    def begin(self, runs: Runs, whole: bool = False) -> None:
        """Computes the hidden states, with `whole` of all tokens. Raises when a row has too few tokens or pages. No row
        advances."""
        ...

    def sample(self, masks: Sequence[bytes | None]) -> list[int] | Tensor | None:
        """What is left of a step that was begun, as `fused` has it. `masks`: one for each sample, as wire/plan.py has
        them, or none at all."""
        ...

    def hidden(self) -> Tensor:
        """[tokens, hidden] after the final norm, of a step begun with `whole`. Valid until the next step."""
        ...

    def logits(self, first: int, count: int) -> Tensor:
        """[count, vocab] f32 of the samples from `first` on, count <= chunk; may be overwritten. Valid until the next
        call."""
        ...

    def advance(self, token_ids: Tensor) -> None:
        """The step is computed, and these tokens [samples] int64 were sampled, one for each run that samples."""
        ...

    def settled(self, last: list[int]) -> None:
        """As `advance`, of a step with drafts: the batch has advanced already, and `last` is the last token now of each
        row that samples."""
        ...
