"""Qwen3.5 (dense, text): what its files say. Three gated delta nets to one layer of gated attention. Of a model that
takes images too, its text model is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from octavo.modelfiles.facts import DeltaFacts, LayerFacts, MLPFacts, ModelFacts, RopeFacts
from octavo.modelfiles.families.reading import COMMON, FULL, SILU, Config, Folder, Header, Shape
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
    return config.model(shape, _layers(shape, _rope(config, shape), _delta(config), mlp, _kinds(config, shape), bias))


def _layers(
    shape: Shape, rope: RopeFacts, delta: DeltaFacts, mlp: MLPFacts, kinds: Sequence[bool], bias: bool = False
) -> list[LayerFacts]:
    """`kinds`: whether each layer is a delta net."""
    attention = replace(shape.attention(rope), qkv_bias=bias, out_bias=bias, head_norms=True, gated=True)
    return [LayerFacts(delta if is_delta else attention, mlp) for is_delta in kinds]


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


def _gguf(header: Header) -> ModelFacts:
    """Blocks for drafts stand behind those of the model, and are not computed."""
    shape = header.shape()
    drafts = header.integer("nextn_predict_layers", 0, low=0)
    if drafts >= shape.num_layers:
        header.fail("nextn_predict_layers", f"{drafts} of {shape.num_layers} blocks are for drafts")
    shape = replace(shape, num_layers=shape.num_layers - drafts)
    v_heads, k_heads = (header.integer(f"ssm.{key}", high=65536) for key in ("time_step_rank", "group_count"))
    inner = header.integer("ssm.inner_size", high=1 << 24)
    if v_heads % k_heads or inner % v_heads:
        header.fail("ssm.time_step_rank", f"{v_heads} heads of v for {k_heads} of k and {inner} features do not go")
    k_dim, taps = header.integer("ssm.state_size", high=65536), header.integer("ssm.conv_kernel", low=2, high=16)
    delta = DeltaFacts(k_heads, v_heads, k_dim, inner // v_heads, taps)
    mlp = MLPFacts(header.integer("feed_forward_length"))
    return header.model(shape, _layers(shape, header.rope(shape, partial=True), delta, mlp, _gguf_kinds(header, shape)))


def _gguf_kinds(header: Header, shape: Shape) -> list[bool]:
    found = header.get("attention.recurrent_layers")
    if found is None:
        period = header.integer("full_attention_interval", PERIOD)
        return [(layer + 1) % period != 0 for layer in range(shape.num_layers)]
    if not isinstance(found, list) or len(found) < shape.num_layers:
        header.fail("attention.recurrent_layers", f"does not say it of {shape.num_layers} layers")
    return [bool(kind) for kind in found[: shape.num_layers]]


FOLDERS = {
    "Qwen3_5ForCausalLM": Folder("qwen3_5_text", DEFAULTS, _folder),
    "Qwen3_5ForConditionalGeneration": Folder("qwen3_5", DEFAULTS, _folder, part="text_config"),
}
GGUF = {"qwen35": _gguf}
