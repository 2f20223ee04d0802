"""What a model is, as plain numbers: from config.json or GGUF metadata, torch-free and before anything loads.

Invariant: the architecture is one that is served, and every number is in a range that makes sense (no zero layers or
heads, kv heads divide heads, finite eps and theta), so nobody checks again. What the reference (Transformers for
folders, llama.cpp for GGUF files) would compute otherwise than the facts say has been refused by its key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.cachespec import CacheSpec, Paged, Recurrent
from octavo.modelfiles.files import ModelFiles


@dataclass(frozen=True)
class RopeFacts:
    """Rotary embedding. `scaling`: None, "linear", "llama3" or "yarn"."""

    theta: float = 10000.0
    rotary_dim: int = 0
    scaling: str | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """Yarn: the range of frequencies that are blended begins and ends at whole dimensions."""
    attention_factor: float = 1.0
    """Multiplies cosines and sines."""
    has_factors: bool = False
    """A tensor of the file divides the frequencies before they are scaled (GGUF's rope_freqs)."""


@dataclass(frozen=True)
class AttentionFacts:
    """Grouped-query attention with keys and values of one width."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeFacts
    scale: float
    """Of the scores."""
    window: int | None = None
    """How many last positions a token sees; None: all."""
    qkv_bias: bool = False
    out_bias: bool = False
    head_norms: bool = False
    """Each head of q and k is normalized before it is rotated."""
    gated: bool = False
    """Each head's result is multiplied with the sigmoid of a gate, which comes with q."""

    @property
    def cache(self) -> Paged:
        return Paged(self.num_kv_heads, self.head_dim, self.head_dim, self.window)

    @property
    def num_rows(self) -> int:
        """Of its matrices, those of the output taken as columns."""
        return (2 + self.gated) * self.num_heads * self.head_dim + 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class DeltaFacts:
    """A gated delta net, behind a convolution of `taps` over q, k and v. A head of k serves v_heads / k_heads of v."""

    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    taps: int

    @property
    def keys(self) -> int:
        """Features of k, and of q."""
        return self.k_heads * self.k_dim

    @property
    def values(self) -> int:
        return self.v_heads * self.v_dim

    @property
    def channels(self) -> int:
        """That are convolved: q, k and v."""
        return 2 * self.keys + self.values

    @property
    def cache(self) -> Recurrent:
        """The last columns of the convolution, and the state of each head of v."""
        return Recurrent(((self.taps - 1, self.channels), (self.v_heads, self.k_dim, self.v_dim)))

    @property
    def num_rows(self) -> int:
        """Of its matrices, those of the output taken as columns."""
        return self.channels + 2 * self.values + 2 * self.v_heads


@dataclass(frozen=True)
class MLPFacts:
    """down(activation(gate(x)) * up(x)). `activation`: silu or gelu_tanh."""

    inner_size: int
    bias: bool = False
    activation: str = "silu"


@dataclass(frozen=True)
class ExpertsFacts:
    """A mixture of `count` gated MLPs, of which each token takes the `chosen` with the largest shares of a softmax."""

    count: int
    chosen: int
    inner_size: int
    """Of one expert."""
    renormalize: bool
    """The shares of those chosen are divided by their sum."""
    shared_size: int = 0
    """Inner size of an expert that every token takes, times the sigmoid of a gate of its own; 0: there is none."""


@dataclass(frozen=True)
class LayerFacts:
    """`mixer`: where tokens see one another."""

    mixer: AttentionFacts | DeltaFacts
    mlp: MLPFacts | ExpertsFacts

    @property
    def cache(self) -> CacheSpec:
        """What it keeps of a sequence."""
        return self.mixer.cache


@dataclass(frozen=True)
class ModelFacts:
    """`architecture`: the registry key, e.g. "LlamaForCausalLM" or the GGUF's "llama"."""

    architecture: str
    layers: tuple[LayerFacts, ...]
    hidden_size: int
    vocab_size: int
    max_position: int
    norm_eps: float
    tie_embeddings: bool
    """The head is the embedding's table, unless the file holds another."""
    embedding_scale: float = 1.0
    """Embeddings are multiplied with it."""
    dtype: str = "bfloat16"
    """The compute type in which its matrices are what the file says; see modelfiles/stored.py."""

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def attention(self) -> AttentionFacts:
        """Of the first layer that has one, for whoever wants a shape in a word."""
        return next(layer.mixer for layer in self.layers if isinstance(layer.mixer, AttentionFacts))

    @property
    def cache_specs(self) -> tuple[CacheSpec, ...]:
        """What each layer keeps."""
        return tuple(layer.cache for layer in self.layers)

    def num_weights(self) -> int:
        """Of matrices, by the shape of such a model."""
        total = (1 if self.tie_embeddings else 2) * self.vocab_size * self.hidden_size
        for layer in self.layers:
            total += self.hidden_size * layer.mixer.num_rows
            if isinstance(layer.mlp, MLPFacts):
                total += 3 * self.hidden_size * layer.mlp.inner_size
            else:
                inner = layer.mlp.count * layer.mlp.inner_size + layer.mlp.shared_size
                total += self.hidden_size * (layer.mlp.count + 3 * inner)
        return total


def read_facts(files: ModelFiles, random_weights: bool = False) -> ModelFacts:
    """`random_weights`: those of a folder are not looked at. Raises ModelFileError that names the file and the key: an
    architecture that is not served, keys that are missing, wrong or inconsistent, what would change the output and is
    not computed here, and damaged headers."""
    if files.is_gguf:
        from octavo.modelfiles.gguf import read_header
        from octavo.modelfiles.gguf_facts import gguf_facts

        return gguf_facts(read_header(files.path), files.path.name)
    from octavo.modelfiles.config_facts import config_facts
    from octavo.modelfiles.jsonfile import read_object
    from octavo.modelfiles.stored import exact_dtype, has_weights, of_folder

    facts = config_facts(read_object(files.path / "config.json"), "config.json")
    looked_at = not random_weights and has_weights(files.path)
    stored = exact_dtype(of_folder(files.path)) if looked_at else None
    return replace(facts, dtype=stored or facts.dtype)
