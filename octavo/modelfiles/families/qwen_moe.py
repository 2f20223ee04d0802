"""Qwen1.5-MoE, Qwen2-MoE and Qwen3-MoE: what their files say. Layers are those of Qwen2 and Qwen3, with a mixture of
experts in most; Qwen2's has an expert beside it that every token takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from octavo.modelfiles.facts import ExpertsFacts, LayerFacts, MLPFacts, ModelFacts
from octavo.modelfiles.families.reading import COMMON, FULL, SILU, SLIDING, Config, Folder, Header, Shape, windowed
from octavo.modelfiles.fields import MAX_LAYERS

MOST_EXPERTS = 65536


def _mlps(config: Config, shape: Shape, experts: ExpertsFacts) -> list[MLPFacts | ExpertsFacts]:
    """Which layers have experts: each `decoder_sparse_step`th that mlp_only_layers does not name."""
    step = config.integer("decoder_sparse_step", 1)
    without = config.get("mlp_only_layers") or []
    if not isinstance(without, list) or any(type(layer) is not int for layer in without):
        config.fail("mlp_only_layers", "is not a list of layers")
    dense = MLPFacts(config.integer("intermediate_size"))
    return [experts if layer not in without and (layer + 1) % step == 0 else dense for layer in range(shape.num_layers)]


def _folder(
    config: Config, windows: Sequence[int | None], bias: tuple[bool, bool], norms: bool, shared: int
) -> ModelFacts:
    shape = config.shape()
    qkv_bias, out_bias = bias
    attention = replace(shape.attention(config.rope(shape)), qkv_bias=qkv_bias, out_bias=out_bias, head_norms=norms)
    config.activation("hidden_act", SILU)
    named = "num_experts" if config.get("num_local_experts") is None else "num_local_experts"
    count = config.integer(named, high=MOST_EXPERTS)
    experts = ExpertsFacts(
        count,
        config.integer("num_experts_per_tok", high=count),
        config.integer("moe_intermediate_size"),
        config.boolean("norm_topk_prob", False),
        shared,
    )
    return config.model(shape, windowed(attention, windows, _mlps(config, shape, experts)))


def _qwen2(config: Config) -> ModelFacts:
    """With sliding windows it is every other layer that has one, of the first so many."""
    num_layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
    most = config.integer("max_window_layers", 0, low=0)
    sliding = config.boolean("use_sliding_window", False)
    kinds = [SLIDING if sliding and i % 2 == 0 and i < most else FULL for i in range(num_layers)]
    bias = config.boolean("qkv_bias", True), False
    shared = config.integer("shared_expert_intermediate_size")
    return _folder(config, config.windows(num_layers, kinds), bias, False, shared)


def _qwen3(config: Config) -> ModelFacts:
    """With a sliding window all layers have it."""
    num_layers, bias = config.integer("num_hidden_layers", high=MAX_LAYERS), config.boolean("attention_bias", False)
    return _folder(config, config.windows(num_layers), (bias, bias), True, 0)


def _gguf(header: Header, *, qkv_bias: bool, norms: bool, renormalize: bool, shared: bool) -> ModelFacts:
    """All layers have experts, as llama.cpp has it."""
    shape = header.shape()
    inner = header.integer("feed_forward_length", 0, low=0)
    count = header.integer("expert_count", high=MOST_EXPERTS)
    chosen = header.integer("expert_used_count", high=count)
    experts = ExpertsFacts(
        count,
        chosen,
        header.integer("expert_feed_forward_length", inner // chosen or None),
        renormalize,
        header.integer("expert_shared_feed_forward_length", inner or None) if shared else 0,
    )
    attention = replace(shape.attention(header.rope(shape)), qkv_bias=qkv_bias, head_norms=norms)
    return header.model(shape, [LayerFacts(attention, experts)] * shape.num_layers)


def _gguf_qwen2(header: Header) -> ModelFacts:
    return _gguf(header, qkv_bias=True, norms=False, renormalize=False, shared=True)


def _gguf_qwen3(header: Header) -> ModelFacts:
    bias = header.has("blk.0.attn_q.bias")
    return _gguf(header, qkv_bias=bias, norms=True, renormalize=True, shared=False)


_DEFAULTS: dict[str, Any] = {
    **COMMON,
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "norm_topk_prob": False,
    "mlp_only_layers": None,
}

FOLDERS = {
    "Qwen2MoeForCausalLM": Folder(
        "qwen2_moe",
        {
            **_DEFAULTS,
            "intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "max_window_layers": 28,
            "layer_types": None,
            "qkv_bias": True,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
        _qwen2,
    ),
    "Qwen3MoeForCausalLM": Folder(
        "qwen3_moe",
        {
            **_DEFAULTS,
            "intermediate_size": 6144,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "attention_bias": False,
            "num_experts": 128,
            "num_local_experts": None,  # the same, as newer versions write it
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        _qwen3,
    ),
}
GGUF = {"qwen2moe": _gguf_qwen2, "qwen3moe": _gguf_qwen3}
