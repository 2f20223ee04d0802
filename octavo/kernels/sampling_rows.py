"""What travels together to the operations that sample: a setting for each row of the logits. A new one is a line here,
one where the worker fills it (worker/sampler), and one in each kernel that reads it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SamplingRows(NamedTuple):
    """How each of [samples] rows draws its token (see Ops.sample)."""

    temperature: Tensor  # f32; 0: the largest logit
    top_k: Tensor  # int64; <= 0: all
    top_p: Tensor  # f32; 1: all
    min_p: Tensor  # f32; 0: all
    seeds: Tensor  # int64
    indices: Tensor  # int64: of the output token

    def of(self, rows: Tensor | slice) -> SamplingRows:
        """The settings of some of them."""
        return SamplingRows(*(each[rows] for each in self))


class PenaltyRows(NamedTuple):
    """What each of [samples] rows has seen, and what that costs (see Ops.penalize)."""

    places: Tensor  # [samples] int64: the row's place in the two tables; below 0: it is left alone
    output_counts: Tensor  # [n, vocab] int32
    prompt_seen: Tensor  # [n, vocab] bool
    presence: Tensor  # [samples] f32
    frequency: Tensor  # [samples] f32
    repetition: Tensor  # [samples] f32
