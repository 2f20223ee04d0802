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

    @classmethod
    def from_columns(cls, floats: Tensor, ints: Tensor) -> SamplingRows:
        """Of the worker's columns of these rows: `floats` [n, samples] begins with temperature, top_p and min_p,
        and penalties follow; `ints` [3, samples] is top_k, seeds and output tokens so far."""
        temperature, top_p, min_p = floats[:3].unbind(0)
        top_k, seeds, indices = ints.unbind(0)
        return cls(temperature, top_k, top_p, min_p, seeds, indices)

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
