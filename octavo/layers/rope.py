"""The table of cosines and sines of a rotary embedding, with its scaling. Made once per model, shared by its layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.modelfiles.facts import RopeFacts


def cos_sin_table(rope: RopeFacts, num_positions: int, factors: Tensor | None = None) -> Tensor:
    """[num_positions, rotary_dim] f32: cosines, then sines, halves convention. `factors` [rotary_dim / 2] divide the
    frequencies (GGUF's rope_freqs)."""
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), inverse_frequencies(rope, factors))
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * rope.attention_factor


def inverse_frequencies(rope: RopeFacts, factors: Tensor | None = None) -> Tensor:
    """[rotary_dim / 2] f32, radians per position."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.has_factors:
        assert factors is not None, "a model with rope factors has to read them"
        frequencies = frequencies / factors.float()
    if rope.scaling == "linear":
        return frequencies / rope.factor
    if rope.scaling == "llama3":
        return _llama3(frequencies, rope)
    if rope.scaling == "yarn":
        return _yarn(frequencies, rope)
    assert rope.scaling is None, f"the facts refuse rope scaling {rope.scaling!r}"
    return frequencies


def _llama3(frequencies: Tensor, rope: RopeFacts) -> Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    turns = rope.original_max_position * frequencies / (2 * math.pi)  # full turns within the trained context
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * frequencies / rope.factor + blend * frequencies


def _yarn(frequencies: Tensor, rope: RopeFacts) -> Tensor:
    """Frequencies that turn more than `beta_fast` times in the trained context are kept, those that turn less than
    `beta_slow` times divided by `factor`, those between blended along their index."""

    def index(turns: float) -> float:
        turn = rope.original_max_position / (turns * 2 * math.pi)
        return rope.rotary_dim * math.log(turn) / (2 * math.log(rope.theta))

    low, high = index(rope.beta_fast), index(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rope.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)
