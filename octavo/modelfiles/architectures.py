"""The architectures that are served, and for each the keys its reference reads, with their defaults. Data, and the
sentences of refusal made of it.

A folder's reference is the class of this name in Transformers: a key that is not listed is one that class ignores, and
so is ignored here, whatever it means to other families. A GGUF file's reference is llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from octavo.errors import ModelFileError

ROPE_TYPES = ("linear", "llama3", "yarn")
"""Kinds of rope scaling in config.json that are computed here, beside the default."""
GGUF_ROPE_TYPES = ("linear", "yarn")


@dataclass(frozen=True)
class Folder:
    """One architecture of a model folder. `defaults`: the keys of config.json that it reads, and their values where
    they are left out (None: see the reader). `qkv_bias`: None when the key attention_bias says so."""

    model_type: str
    defaults: Mapping[str, Any]
    qkv_bias: bool | None = False


_COMMON: dict[str, Any] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_size": 4096,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_QWEN: dict[str, Any] = {
    **_COMMON,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}

FOLDERS: dict[str, Folder] = {
    "LlamaForCausalLM": Folder(
        "llama",
        {
            **_COMMON,
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "mlp_bias": False,
        },
        qkv_bias=None,
    ),
    "MistralForCausalLM": Folder(
        "mistral",
        {
            **_COMMON,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "layer_types": None,
        },
    ),
    "Qwen2ForCausalLM": Folder("qwen2", _QWEN, qkv_bias=True),
    "Qwen3ForCausalLM": Folder("qwen3", {**_QWEN, "head_dim": 128, "attention_bias": False}, qkv_bias=None),
}

GGUF = ("llama", "qwen2", "qwen3")
"""Values of general.architecture."""


def refuse(file: str, architecture: str, names: tuple[str, ...]) -> NoReturn:
    """An architecture that is not served. `names`: those of this kind of file that are."""
    raise ModelFileError(
        file, f"architecture {architecture!r:.80} is not supported yet; supported: {', '.join(sorted(names))}"
    )


def listed(names: tuple[str, ...]) -> str:
    """ "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}"
