"""Llama, Mistral and what shares their structure (SmolLM, SmolLM2, …): what their files say."""

from __future__ import annotations

from dataclasses import replace

from octavo.modelfiles.facts import LayerFacts, MLPFacts, ModelFacts
from octavo.modelfiles.families.reading import COMMON, SILU, Config, Folder, Header, windowed


def folder_layers(
    config: Config, *, qkv_bias: bool = False, out_bias: bool = False, mlp_bias: bool = False, head_norms: bool = False
) -> ModelFacts:
    """Layers that are all alike, but for a sliding window where the class knows one."""
    shape = config.shape()
    attention = replace(
        shape.attention(config.rope(shape)), qkv_bias=qkv_bias, out_bias=out_bias, head_norms=head_norms
    )
    config.activation("hidden_act", SILU)
    mlp = MLPFacts(config.integer("intermediate_size"), mlp_bias)
    return config.model(shape, windowed(attention, config.windows(shape.num_layers), [mlp] * shape.num_layers))


def gguf_layers(header: Header, *, qkv_bias: bool, head_norms: bool = False) -> ModelFacts:
    """Layers that are all alike, with the biases that the file holds."""
    shape = header.shape()
    out_bias = header.has("blk.0.attn_output.bias")
    attention = replace(
        shape.attention(header.rope(shape)), qkv_bias=qkv_bias, out_bias=out_bias, head_norms=head_norms
    )
    mlp = MLPFacts(header.integer("feed_forward_length"), bias=header.has("blk.0.ffn_up.bias"))
    return header.model(shape, [LayerFacts(attention, mlp)] * shape.num_layers)


def _llama(config: Config) -> ModelFacts:
    bias = config.boolean("attention_bias", False)
    return folder_layers(config, qkv_bias=bias, out_bias=bias, mlp_bias=config.boolean("mlp_bias", False))


def _gguf(header: Header) -> ModelFacts:
    return gguf_layers(header, qkv_bias=header.has("blk.0.attn_q.bias"))


FOLDERS = {
    "LlamaForCausalLM": Folder(
        "llama",
        {
            **COMMON,
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "mlp_bias": False,
        },
        _llama,
    ),
    "MistralForCausalLM": Folder(
        "mistral",
        {
            **COMMON,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "layer_types": None,
        },
        folder_layers,
    ),
}
GGUF = {"llama": _gguf}
