"""Qwen2, Qwen2.5 and Qwen3 (dense), from safetensors and from GGUF: Llama's structure; biases and norms of heads are in
the facts."""

from __future__ import annotations

from octavo.models.builder import DecoderBuilder
from octavo.models.reader import GGUF_PARTS


class GGUFQwen(DecoderBuilder):
    """A GGUF file has the rows of q and k in the order of the halves convention."""

    gguf_parts = GGUF_PARTS


BUILDERS = {
    "Qwen2ForCausalLM": DecoderBuilder,
    "Qwen3ForCausalLM": DecoderBuilder,
    "qwen2": GGUFQwen,
    "qwen3": GGUFQwen,
}
