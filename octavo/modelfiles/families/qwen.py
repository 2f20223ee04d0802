"""Qwen2, Qwen2.5 and Qwen3 (dense): what their files say. Qwen2 has biases on q, k and v alone, Qwen3 norms of the
heads of q and k."""

from __future__ import annotations

from typing import Any

from octavo.modelfiles.facts import ModelFacts
from octavo.modelfiles.families.llama import folder_layers, gguf_layers
from octavo.modelfiles.families.reading import COMMON, Config, Folder, Header

DEFAULTS: dict[str, Any] = {
    **COMMON,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}


def _qwen2(config: Config) -> ModelFacts:
    return folder_layers(config, qkv_bias=True)


def _qwen3(config: Config) -> ModelFacts:
    bias = config.boolean("attention_bias", False)
    return folder_layers(config, qkv_bias=bias, out_bias=bias, head_norms=True)


def _gguf_qwen2(header: Header) -> ModelFacts:
    return gguf_layers(header, qkv_bias=True)


def _gguf_qwen3(header: Header) -> ModelFacts:
    return gguf_layers(header, qkv_bias=header.has("blk.0.attn_q.bias"), head_norms=True)


FOLDERS = {
    "Qwen2ForCausalLM": Folder("qwen2", DEFAULTS, _qwen2),
    "Qwen3ForCausalLM": Folder("qwen3", {**DEFAULTS, "head_dim": 128, "attention_bias": False}, _qwen3),
}
GGUF = {"qwen2": _gguf_qwen2, "qwen3": _gguf_qwen3}
