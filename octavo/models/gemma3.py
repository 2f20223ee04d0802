"""Gemma 3 (text), from safetensors and from GGUF: scaled embeddings, norms before and after attention and MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from octavo.models.builder import DecoderBuilder
from octavo.models.decoder import Block, SandwichBlock
from octavo.models.reader import GGUF_PARTS


class GGUFGemma3(DecoderBuilder):
    """A GGUF file has norms as they are multiplied."""

    gguf_parts: ClassVar[Mapping[str, str] | None] = {
        **GGUF_PARTS,
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }

    def block(self, layer: int, at: str) -> Block:
        return SandwichBlock(
            self.norm(f"{at}.input_layernorm"),
            self.attention(layer, f"{at}.self_attn"),
            self.norm(f"{at}.post_attention_layernorm"),
            self.norm(f"{at}.pre_feedforward_layernorm"),
            self.mlp(layer, f"{at}.mlp"),
            self.norm(f"{at}.post_feedforward_layernorm"),
        )


class Gemma3(GGUFGemma3):
    """A folder has norms less one, and its class rounds the scale of embeddings to their type."""

    gguf_parts: ClassVar[Mapping[str, str] | None] = None

    def embedding_scale(self) -> float:
        return float(torch.tensor(self.facts.embedding_scale).to(self.dtype))

    def norm_weight(self, name: str, size: int) -> Tensor:
        return super().norm_weight(name, size) + 1.0


BUILDERS = {"Gemma3ForCausalLM": Gemma3, "gemma3": GGUFGemma3}
