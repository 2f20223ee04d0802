"""The rotary embedding a model file asks for, as its reference reads it: Transformers 5 for config.json, llama.cpp for
GGUF. Kinds of scaling that are not computed here are refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from octavo.modelfiles.facts import RopeFacts
from octavo.modelfiles.fields import MAX_POSITIONS, Fields

ROPE_TYPES = ("linear", "llama3", "yarn")
"""Kinds of scaling in config.json that are computed here, beside the default."""
GGUF_ROPE_TYPES = ("linear", "yarn")
_BY_LAYER = ("full_attention", "sliding_attention")


def config_rope(config: dict[str, Any], file: str, head_dim: int, max_position: int) -> RopeFacts:
    """`config`: all of config.json. rope_scaling takes the place of rope_parameters when both are there."""
    fields = Fields(file, config)
    key = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    scaling = fields.part(key) or Fields(file, {})
    if nested := [name for name in _BY_LAYER if name in scaling.values]:
        fields.fail(key, f"{nested[0]}: a rope for each kind of layer is not part of this architecture")
    theta = scaling.number("rope_theta", fields.number("rope_theta", 10000.0))
    if key == "rope_scaling" and isinstance(other := fields.get("rope_parameters"), dict):
        lost = other.get("rope_theta", theta)
        if scaling.get("rope_theta") is None and lost != theta:
            fields.fail(key, f"takes the place of rope_parameters, whose rope_theta {lost} is then lost; add it here")
    rope = RopeFacts(theta=theta, rotary_dim=head_dim)
    kind = scaling.string("rope_type") or scaling.string("type") or "default"
    if kind == "default":
        return rope
    if kind not in ROPE_TYPES:
        scaling.fail("rope_type", f"{kind!r:.40} is not supported yet; {_listed(ROPE_TYPES)} are")
    share = scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if share != 1.0:
        scaling.fail("partial_rotary_factor", f"{share:g} is not part of this architecture")
    if kind == "linear":
        return replace(rope, scaling=kind, factor=scaling.number("factor"))
    name = "original_max_position_embeddings"
    original = fields.integer(name, scaling.integer(name, max_position, high=MAX_POSITIONS), high=MAX_POSITIONS)
    rope = replace(rope, scaling=kind, original_max_position=original)
    return _llama3(rope, scaling) if kind == "llama3" else _yarn(rope, scaling, max_position)


def _listed(names: tuple[str, ...]) -> str:
    """ "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _llama3(rope: RopeFacts, scaling: Fields) -> RopeFacts:
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if low >= high:
        scaling.fail("low_freq_factor", f"{low:g} is not below high_freq_factor {high:g}")
    return replace(rope, factor=scaling.number("factor"), low_freq_factor=low, high_freq_factor=high)


def _yarn(rope: RopeFacts, scaling: Fields, max_position: int) -> RopeFacts:
    if "factor" not in scaling.values:
        scaling.fail("factor", "is missing")
    factor = scaling.number("factor", max_position / rope.original_max_position)
    attention_factor = mscale(factor)
    scales = [scaling.number(key, 0.0) for key in ("mscale", "mscale_all_dim")]
    if all(scales):
        attention_factor = mscale(factor, scales[0]) / mscale(factor, scales[1])
    return replace(
        rope,
        factor=factor,
        attention_factor=scaling.number("attention_factor", attention_factor),
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        truncate=scaling.boolean("truncate", True),
    )


def mscale(factor: float, scale: float = 1.0) -> float:
    """Yarn's factor of cosines and sines for frequencies divided by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


_YARN_KEYS = {
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.alpha": (0.0,),
}
"""Keys that llama.cpp reads for other architectures, and the values that say what it computes for ours."""


def gguf_rope(fields: Fields, head_dim: int, max_position: int, has_factors: bool, partial: bool = False) -> RopeFacts:
    """`fields`: those under the architecture's prefix. `has_factors`: there is a tensor rope_freqs.weight. `partial`:
    the first features alone may be turned."""
    key = "rope.dimension_count"
    rotary_dim = fields.integer(key, head_dim, low=0)
    if partial and (rotary_dim % 2 or not 0 < rotary_dim <= head_dim):
        fields.fail(key, f"{rotary_dim} of {head_dim} features cannot be turned in pairs")
    if rotary_dim != head_dim and not partial:
        fields.fail(key, f"{rotary_dim} of {head_dim}: partial rotation is not part of this architecture")
    for key, values in _YARN_KEYS.items():
        if (value := fields.get(key)) is not None and value not in values:
            fields.fail(key, f"{value!r:.40} is not understood here; {values[0]:g} is")
    rope = RopeFacts(
        theta=fields.number("rope.freq_base", 10000.0),
        rotary_dim=rotary_dim,
        has_factors=has_factors,
        attention_factor=fields.number("rope.scaling.attn_factor", 1.0),
    )
    kind = fields.string("rope.scaling.type", "linear")
    key = "rope.scale_linear" if fields.get("rope.scaling.factor") is None else "rope.scaling.factor"
    factor = fields.number(key, 1.0) if fields.get(key) else 1.0  # zero says the same as no key
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return rope
    if kind not in GGUF_ROPE_TYPES:
        fields.fail("rope.scaling.type", f"{kind!r:.40} is not supported yet; {_listed(GGUF_ROPE_TYPES)} are")
    if kind == "linear":
        return replace(rope, scaling=kind, factor=factor)
    return replace(
        rope,
        scaling=kind,
        factor=factor,
        original_max_position=fields.integer("rope.scaling.original_context_length", max_position, high=MAX_POSITIONS),
        # The file's own factor multiplies the usual one, where config.json's replaces it.
        attention_factor=rope.attention_factor * mscale(factor),
    )
