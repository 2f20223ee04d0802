"""What a model is, as plain numbers: read from config.json or GGUF metadata, without torch and before anything loads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeFacts:
    """Rotary embedding. `scaling`: None, "linear", "llama3", "yarn" or "factors" (GGUF rope_freqs tensor)."""

    theta: float = 10000.0
    rotary_dim: int = 0
    scaling: str | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0


@dataclass(frozen=True)
class ModelFacts:
    """`architecture`: the registry key, e.g. "LlamaForCausalLM" or the GGUF's "llama"."""

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    norm_eps: float
    rope: RopeFacts
    tie_embeddings: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    dtype: str = "bfloat16"

    def kv_bytes_per_token(self, element_size: int) -> int:
        """Bytes of K and V that one token takes over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_size
