"""Llama, Mistral and what shares their structure (SmolLM, SmolLM2, ...), from safetensors and from GGUF."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.models.builder import DecoderBuilder
from octavo.models.reader import GGUF_PARTS


class GGUFLlama(DecoderBuilder):
    """A GGUF file stores the rows of q and k in the order of the interleaved rotary convention."""

    gguf_parts = GGUF_PARTS

    def row_order(self, part: str, heads: int, head_dim: int) -> Tensor | None:
        """Turns pairs (x0, y0, x1, y1, ...) of each head into halves (x0, x1, ..., y0, y1, ...)."""
        if part == "v":
            return None
        rows = torch.arange(heads * head_dim, device=self.ops.device)
        return rows.view(heads, head_dim // 2, 2).transpose(1, 2).flatten()


BUILDERS = {"LlamaForCausalLM": DecoderBuilder, "MistralForCausalLM": DecoderBuilder, "llama": GGUFLlama}
