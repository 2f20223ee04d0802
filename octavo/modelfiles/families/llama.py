"""Llama, Mistral and what shares their structure (SmolLM, SmolLM2, …): what their files say."""

from __future__ import annotations

from octavo.modelfiles.facts import AttentionFacts, LayerFacts, MLPFacts, ModelFacts
from octavo.modelfiles.families.reading import COMMON, SILU, Config, Folder, Header
from octavo.modelfiles.rope import config_rope, gguf_rope


def _llama(config: Config) -> ModelFacts:
    shape, bias = config.shape(), config.boolean("attention_bias", False)
    rope = config_rope(config.whole, config.file, shape.head_dim, shape.max_position)
    attention = AttentionFacts(
        shape.num_heads, shape.num_kv_heads, shape.head_dim, rope, shape.head_dim**-0.5, qkv_bias=bias, out_bias=bias
    )
    config.activation("hidden_act", SILU)
    mlp = MLPFacts(config.integer("intermediate_size"), config.boolean("mlp_bias", False))
    return config.model(shape, [LayerFacts(attention, mlp)] * shape.num_layers)


def _mistral(config: Config) -> ModelFacts:
    shape = config.shape()
    rope = config_rope(config.whole, config.file, shape.head_dim, shape.max_position)
    config.activation("hidden_act", SILU)
    mlp = MLPFacts(config.integer("intermediate_size"))
    heads = shape.num_heads, shape.num_kv_heads, shape.head_dim
    layers = [
        LayerFacts(AttentionFacts(*heads, rope, shape.head_dim**-0.5, window), mlp)
        for window in config.windows(shape.num_layers)
    ]
    return config.model(shape, layers)


def gguf_layers(header: Header, *, qkv_bias: bool, head_norms: bool = False) -> ModelFacts:
    """Layers that are all alike, with the biases that the file holds."""
    shape = header.shape()
    attention = AttentionFacts(
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        gguf_rope(header, shape.head_dim, shape.max_position, header.has("rope_freqs.weight")),
        shape.head_dim**-0.5,
        qkv_bias=qkv_bias,
        out_bias=header.has("blk.0.attn_output.bias"),
        head_norms=head_norms,
    )
    mlp = MLPFacts(header.integer("feed_forward_length"), bias=header.has("blk.0.ffn_up.bias"))
    return header.model(shape, [LayerFacts(attention, mlp)] * shape.num_layers)


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
        _mistral,
    ),
}
GGUF = {"llama": _gguf}
