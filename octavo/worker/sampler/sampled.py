"""What passes between the halves of a sampler's step: from host to device, and to the one who reads it. Made by
worker/sampler/sampler.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from octavo.types import TokenLogprobs, TopLogprob

LOGPROB_FLOOR = -9999.0


@dataclass(frozen=True)
class Draw:
    """A step as the host knows it, and what the device has to know, which is there."""

    rows: list[int]
    needs: int
    settings_of: Tensor  # [>= rows] int64: `rows`, then padding
    there: dict[str, Tensor] = field(default_factory=dict)
    wanted: list[int] = field(default_factory=list)
    """Places in `rows` of those that want log-probabilities, and how many alternatives each."""
    num_top: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Sampled:
    """One token of each row, on the device."""

    rows: list[int]
    token_ids: Tensor  # [samples] int64; -1: the logits were not numbers
    logprobs: tuple[Tensor, ...] = ()
    """Where any are wanted: chosen [m] f32, top values [m, top] f32 and ids [m, top] int64."""
    wanted: list[int] = field(default_factory=list)
    num_top: list[int] = field(default_factory=list)
    """As in Draw."""

    def tensors(self) -> list[Tensor]:
        """What the host wants to have, token_ids first."""
        return [self.token_ids, *self.logprobs]


def listed(token_ids: list[int], num_top: list[int], scores: Sequence[Tensor]) -> list[TokenLogprobs]:
    """scores, on the host: as Sampled.logprobs, of `token_ids`."""
    chosen, values, top_ids = scores
    columns = (chosen.clamp_min(LOGPROB_FLOOR).tolist(), values.clamp_min(LOGPROB_FLOOR).tolist(), top_ids.tolist())
    return [
        TokenLogprobs(token_id, logprob, [TopLogprob(i, v) for i, v in zip(best[:n], value[:n], strict=True)])
        for token_id, n, logprob, value, best in zip(token_ids, num_top, *columns, strict=True)
    ]
