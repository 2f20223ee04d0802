"""A step recorded once and replayed: the seam between the worker and backends that can do so (`Ops.record`).

The worker's permanent rows are the inputs, so that a step costs one call with the numbers of the moment. On the CPU it
is a list of native calls over a fixed workspace (kernels/cpu).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from octavo.kernels.step import Step

Masks = Callable[[], list[bytes | None]]
"""The tokens that each sample may take, None for any: bit t % 32 of the little-endian 32-bit word t // 32 of
[ceil(vocab / 32)]. It may block until they are there."""


class StepModel(Protocol):
    """What is recorded: models.decoder.Model, as far as it matters here."""

    def __call__(self, step: Step, kv: Sequence[Tensor]) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class PermanentRows:
    """Arrays over the worker's rows that never move: worker/batch.py's and the sampler's. A recorded step reads them,
    and writes what it computed and sampled."""

    token_ids: Tensor  # [rows, max_model_len + 1] int32
    block_tables: Tensor  # [rows, pages] int32
    num_tokens: Tensor  # [rows] int32
    num_computed: Tensor  # [rows] int32
    num_blocks: Tensor  # [rows] int32
    sampling_floats: Tensor  # [rows, n] f32: temperature, top_p, min_p, then what is not needed here
    sampling_ints: Tensor  # [rows, n] int64: top_k, seed, output tokens so far


class Steps(Protocol):
    """One step after the other: `begin`, then `hidden` and `logits` as wanted, then `advance`; or `begin` and `plain`,
    where that has an answer."""

    chunk: int
    """Most samples whose logits are there at once."""

    def begin(self, rows: list[int], counts: list[int], samples: list[bool], whole: bool = False) -> None:
        """Computes the next counts[i] tokens of rows[i]; with samples[i] they end at the row's last token, and logits
        are wanted there. `whole`: `hidden` is wanted too. Raises when a row has too few tokens or pages. No row
        advances."""
        ...

    def hidden(self) -> Tensor:
        """[tokens, hidden] after the final norm, of a step begun with `whole`. Valid until the next step."""
        ...

    def logits(self, first: int, count: int) -> Tensor:
        """[count, vocab] f32 of the samples from `first` on, count <= chunk; may be overwritten. Valid until the next
        call."""
        ...

    def advance(self, token_ids: Tensor) -> None:
        """The step is computed, and these tokens [samples] int64 were sampled."""
        ...

    def plain(self) -> Tensor | None:
        """[samples] int64: tokens sampled by the rows' temperature, top_k, top_p and min_p alone, and the rows have
        advanced; None: this step has no such shortcut. Valid until the next step."""
        ...


class Recorded(Steps, Protocol):
    """Steps of which each may also be one call."""

    nbytes: int
    """Of the workspace."""

    def step(self, rows: list[int], counts: list[int], samples: list[bool], masks: Masks | None = None) -> list[int]:
        """All of it: tokens are sampled by the rows' temperature, top_k, top_p and min_p alone, and the rows advance.
        Where a token is -1 (logits that are not numbers) no row has advanced. `masks` is asked once logits are wanted.
        """
        ...
