"""Qwen3.5 (dense, text): what its files say. Three gated delta nets to one layer of gated attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.modelfiles.facts import DeltaFacts, LayerFacts, MLPFacts, ModelFacts, RopeFacts
from octavo.modelfiles.families.reading import COMMON, FULL, SILU, Config, Folder, Shape
from octavo.modelfiles.fields import Fields

LINEAR = "linear_attention"
"""Kind of a layer in config.json."""
PERIOD = 4
"""Every so many layers there is one of attention."""
ROTARY_SHARE = 0.25
DEFAULTS: dict[str, Any] = {
    **COMMON,
    "vocab_size": 248320,
    "intermediate_size": 12288,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "attention_bias": False,
    "layer_types": None,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}


def _folder(config: Config) -> ModelFacts:
    shape = config.shape()
    config.activation("hidden_act", SILU)
    mlp = MLPFacts(config.integer("intermediate_size"))
    bias = config.boolean("attention_bias", False)
    delta = _delta(config)
    usual = shape.attention(_rope(config, shape))
    attention = replace(usual, qkv_bias=bias, out_bias=bias, head_norms=True, gated=True)
    layers = [LayerFacts(delta if is_delta else attention, mlp) for is_delta in _kinds(config, shape)]
    return config.model(shape, layers)


def _delta(config: Config) -> DeltaFacts:
    k_dim, v_dim = (config.integer(f"linear_{part}_head_dim", high=65536) for part in ("key", "value"))
    k_heads, v_heads = (config.integer(f"linear_num_{part}_heads", high=65536) for part in ("key", "value"))
    if v_heads % k_heads:
        message = f"{v_heads} heads of v are not a multiple of the {k_heads} of k"
        config.fail("linear_num_value_heads", message)
    return DeltaFacts(k_heads, v_heads, k_dim, v_dim, config.integer("linear_conv_kernel_dim", low=2, high=16))


def _kinds(config: Config, shape: Shape) -> list[bool]:
    """Whether each layer is a delta net."""
    found = config.get("layer_types")
    if found is None:
        period = Fields(config.file, config.whole).integer("full_attention_interval", PERIOD)
        return [(layer + 1) % period != 0 for layer in range(shape.num_layers)]
    if not isinstance(found, list) or len(found) != shape.num_layers or {*map(str, found)} - {FULL, LINEAR}:
        config.fail("layer_types", f"is not a list of {shape.num_layers} names, {FULL} or {LINEAR}")
    return [kind == LINEAR for kind in found]


def _rope(config: Config, shape: Shape) -> RopeFacts:
    """Of text alone the three parts of a position are equal, so sections say nothing."""
    whole = Fields(config.file, config.whole)
    given = whole.part("rope_parameters") or Fields(config.file, {})
    share = given.number("partial_rotary_factor", whole.number("partial_rotary_factor", ROTARY_SHARE))
    rope = config.rope(shape)
    if rope.scaling is not None:
        config.fail("rope_parameters", f"scaling of kind {rope.scaling} is not supported yet for this architecture")
    rotary_dim = int(shape.head_dim * share)
    if rotary_dim % 2 or not 0 < rotary_dim <= shape.head_dim:
        message = f"{rotary_dim} of {shape.head_dim} features cannot be turned in pairs"
        config.fail("partial_rotary_factor", message)
    return replace(rope, rotary_dim=rotary_dim)


FOLDERS = {"Qwen3_5ForCausalLM": Folder("qwen3_5_text", DEFAULTS, _folder)}
