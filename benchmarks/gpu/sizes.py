"""The models whose sizes are checked, and what one step of them must move and compute. Integers only, no torch."""

from __future__ import annotations

from dataclasses import dataclass

BF16_BYTES = 2


@dataclass(frozen=True)
class Model:
    """A model's sizes. `experts`, `per_token`: of a mixture; `inner` is then one expert's."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    experts: int = 0
    per_token: int = 0
    layers: int = 1
    tied: bool = True
    """The embeddings are the last product's matrix too."""
    head_norms: bool = False
    """Heads of q and k are normalized before they are rotated."""

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """[out, in] of a layer's fused products; of a mixture the experts' are not among them."""
        both = {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
        }
        dense = {"gate-up": (2 * self.inner, self.hidden), "down": (self.hidden, self.inner)}
        return both if self.experts else {**both, **dense}

    @property
    def layer_weights(self) -> int:
        """In the products of all layers."""
        return self.layers * sum(n * k for n, k in self.matrices.values())

    @property
    def head_weights(self) -> int:
        """In the product that makes logits."""
        return self.vocab * self.hidden

    @property
    def kv_bytes(self) -> int:
        """Of one token's K and V in all layers, in bf16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BF16_BYTES

    def decode_bytes(self, context: int) -> int:
        """That a step of one new token for each row moves at least: the weights once, and `context` tokens of KV, of
        all rows together."""
        return BF16_BYTES * (self.layer_weights + self.head_weights) + context * self.kv_bytes

    def decode_operations(self, rows: int, context: int) -> int:
        """Of such a step's products; `context` as above."""
        return 2 * rows * (self.layer_weights + self.head_weights) + self._attention(context)

    def prefill_operations(self, tokens: int) -> int:
        """Of a prompt's products, attention causal, with the logits of the last token."""
        pairs = tokens * (tokens + 1) // 2
        return 2 * (tokens * self.layer_weights + self.head_weights) + self._attention(pairs)

    def _attention(self, pairs: int) -> int:
        """Of so many pairs of a query and a key."""
        return 4 * self.layers * self.heads * self.head_dim * pairs


MODELS = [
    Model("Llama-3.2-1B", 2048, 32, 8, 64, 8192, 128256, layers=16),
    Model("Llama-3.1-8B", 4096, 32, 8, 128, 14336, 128256, layers=32, tied=False),
    Model("Qwen3-0.6B", 1024, 16, 8, 128, 3072, 151936, layers=28, head_norms=True),
    Model(
        "Qwen3-30B-A3B", 2048, 32, 4, 128, 768, 151936, experts=128, per_token=8, layers=48, tied=False, head_norms=True
    ),
]
WIDE_HEADS = Model("Gemma-3-1B", 1152, 4, 1, 256, 6912, 262144, layers=26, head_norms=True)
"""Compiled for each class of GPU, not timed."""
TINY = [
    Model("tiny", 64, 4, 2, 16, 96, 300),
    Model("tiny-mixture", 64, 4, 1, 32, 32, 200, experts=4, per_token=2, head_norms=True),
]
"""They test the scripts, not the kernels."""
