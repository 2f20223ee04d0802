"""Qwen3.5 (dense, text): what its files say. Three gated delta nets to one layer of gated attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from octavo.modelfiles.facts import AttentionFacts, DeltaFacts, LayerFacts, MLPFacts, ModelFacts, RopeFacts
from octavo.modelfiles.families.reading import COMMON, FULL, SILU, Config, Folder, Shape
from octavo.modelfiles.fields import Fields
from octavo.modelfiles.rope import config_rope

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


def _layers(
    shape: Shape, kinds: Sequence[bool], delta: DeltaFacts, mlp: MLPFacts, rope: RopeFacts, bias: bool
) -> list[LayerFacts]:
    """`kinds`: whether the layer is a delta net."""
    heads = shape.num_heads, shape.num_kv_heads, shape.head_dim
    attention = AttentionFacts(*heads, rope, shape.head_dim**-0.5, None, bias, bias, head_norms=True, gated=True)
    return [LayerFacts(delta if is_delta else attention, mlp) for is_delta in kinds]


def _delta(fields: Fields, keys: Sequence[str], k_dim: int, v_dim: int) -> DeltaFacts:
    """`keys`: of the heads of k, of those of v, of the taps."""
    k_heads, v_heads = fields.integer(keys[0], high=65536), fields.integer(keys[1], high=65536)
    if v_heads % k_heads:
        fields.fail(keys[1], f"{v_heads} heads of v are not a multiple of the {k_heads} of k")
    return DeltaFacts(k_heads, v_heads, k_dim, v_dim, fields.integer(keys[2], low=2, high=16))


def _folder(config: Config) -> ModelFacts:
    shape = config.shape()
    config.activation("hidden_act", SILU)
    dims = [config.integer(f"linear_{part}_head_dim", high=65536) for part in ("key", "value")]
    keys = "linear_num_key_heads", "linear_num_value_heads", "linear_conv_kernel_dim"
    mlp = MLPFacts(config.integer("intermediate_size"))
    bias = config.boolean("attention_bias", False)
    delta = _delta(config, keys, *dims)
    return config.model(shape, _layers(shape, _kinds(config, shape), delta, mlp, _rope(config, shape), bias))


def _kinds(config: Config, shape: Shape) -> list[bool]:
    found = config.get("layer_types")
    if found is None:
        return _by_period(shape, Fields(config.file, config.whole).integer("full_attention_interval", PERIOD))
    if not isinstance(found, list) or len(found) != shape.num_layers or {*map(str, found)} - {FULL, LINEAR}:
        config.fail("layer_types", f"is not a list of {shape.num_layers} names, {FULL} or {LINEAR}")
    return [kind == LINEAR for kind in found]


def _by_period(shape: Shape, period: int) -> list[bool]:
    return [(layer + 1) % period != 0 for layer in range(shape.num_layers)]


def _rope(config: Config, shape: Shape) -> RopeFacts:
    """Of text alone the three parts of a position are equal, so sections say nothing."""
    whole = Fields(config.file, config.whole)
    given = whole.part("rope_parameters") or Fields(config.file, {})
    share = given.number("partial_rotary_factor", whole.number("partial_rotary_factor", ROTARY_SHARE))
    rope = config_rope(config.whole, config.file, shape.head_dim, shape.max_position)
    if rope.scaling is not None:
        config.fail("rope_parameters", f"scaling of kind {rope.scaling} is not supported yet for this architecture")
    return _partial(config, "partial_rotary_factor", rope, int(shape.head_dim * share), shape.head_dim)


def _partial(fields: Fields, key: str, rope: RopeFacts, rotary_dim: int, head_dim: int) -> RopeFacts:
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        fields.fail(key, f"{rotary_dim} of {head_dim} features cannot be turned in pairs")
    return replace(rope, rotary_dim=rotary_dim)


FOLDERS = {"Qwen3_5ForCausalLM": Folder("qwen3_5_text", DEFAULTS, _folder)}
