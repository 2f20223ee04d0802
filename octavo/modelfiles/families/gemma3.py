"""Gemma 3 (text): what its files say. Five layers with a window to one without, each kind with a rope of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from octavo.modelfiles.facts import LayerFacts, MLPFacts, ModelFacts, RopeFacts
from octavo.modelfiles.families.reading import FULL, SLIDING, Config, Folder, Header, Shape
from octavo.modelfiles.fields import Fields
from octavo.modelfiles.rope import config_rope

THETA, LOCAL_THETA = 1e6, 1e4
PERIOD = 6
"""Every so many layers there is one without a window."""
LAYERS_27B = 62
"""llama.cpp knows the largest model, whose scores are scaled otherwise, by its layers."""


def _layers(
    shape: Shape, mlp: MLPFacts, windows: Sequence[int | None], ropes: dict[bool, RopeFacts], scale: float, bias: bool
) -> list[LayerFacts]:
    """`ropes`: by whether the layer has a window."""
    usual = replace(shape.attention(ropes[False]), scale=scale, qkv_bias=bias, out_bias=bias, head_norms=True)
    return [LayerFacts(replace(usual, rope=ropes[window is not None], window=window), mlp) for window in windows]


def _folder(config: Config) -> ModelFacts:
    shape = config.shape()
    if config.boolean("use_bidirectional_attention", False):
        config.fail("use_bidirectional_attention", "only causal attention is supported")
    if config.get("final_logit_softcapping") is not None:
        config.fail("final_logit_softcapping", "is not supported yet")
    mlp = MLPFacts(config.integer("intermediate_size"), False, config.activation("hidden_activation", _ACTIVATIONS))
    period = Fields(config.file, config.whole).integer("sliding_window_pattern", PERIOD)
    kinds = [FULL if (layer + 1) % period == 0 else SLIDING for layer in range(shape.num_layers)]
    scale = config.number("query_pre_attn_scalar") ** -0.5
    windows, bias = config.windows(shape.num_layers, kinds), config.boolean("attention_bias", False)
    layers = _layers(shape, mlp, windows, _folder_ropes(config, shape), scale, bias)
    return config.model(shape, layers, embedding_scale=shape.hidden_size**0.5)


def _folder_ropes(config: Config, shape: Shape) -> dict[bool, RopeFacts]:
    """Newer files name the parameters of each kind of layer, older ones those of the layers without a window."""
    whole = Fields(config.file, config.whole)
    given = whole.part("rope_parameters") or Fields(config.file, {})
    old = whole.part("rope_scaling")
    found: dict[bool, RopeFacts] = {}
    for kind, theta in ((FULL, ("rope_theta", THETA)), (SLIDING, ("rope_local_base_freq", LOCAL_THETA))):
        part = given.part(kind)
        values: dict[str, Any] = dict(part.values) if part is not None else {}
        if old is not None and kind == FULL:
            values.update(old.values)
        values.setdefault("rope_theta", whole.number(*theta))
        found[kind == SLIDING] = config_rope(
            {"rope_parameters": values}, config.file, shape.head_dim, shape.max_position
        )
    return found


def _gguf(header: Header) -> ModelFacts:
    shape = header.shape()
    window = header.integer("attention.sliding_window", 0, low=0) or None
    period = header.integer("attention.sliding_window_pattern", PERIOD)
    windows = [None if (layer + 1) % period == 0 else window for layer in range(shape.num_layers)]
    local = RopeFacts(theta=header.number("rope.freq_base_swa", LOCAL_THETA), rotary_dim=shape.head_dim)
    ropes = {False: header.rope(shape), True: local}
    scaled_by = shape.hidden_size / shape.num_heads if shape.num_layers == LAYERS_27B else shape.head_dim
    mlp = MLPFacts(header.integer("feed_forward_length"), activation="gelu_tanh")
    layers = _layers(shape, mlp, windows, ropes, scaled_by**-0.5, header.has("blk.0.attn_q.bias"))
    return header.model(shape, layers, embedding_scale=shape.hidden_size**0.5)


_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}

FOLDERS = {
    "Gemma3ForCausalLM": Folder(
        "gemma3_text",
        {
            "vocab_size": 262208,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "layer_types": None,
            "final_logit_softcapping": None,
            "use_bidirectional_attention": False,
        },
        _folder,
    )
}
GGUF = {"gemma3": _gguf}
