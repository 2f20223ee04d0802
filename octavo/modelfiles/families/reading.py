"""What the files of many families have in common, read with the checks that each needs: sizes, windows, activations.
A family's file puts the facts of its layers together from these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from octavo.errors import ModelFileError
from octavo.modelfiles.facts import AttentionFacts, ExpertsFacts, LayerFacts, MLPFacts, ModelFacts, RopeFacts
from octavo.modelfiles.fields import MAX_LAYERS, MAX_POSITIONS, Fields, heads_of
from octavo.modelfiles.gguf import GGUFHeader
from octavo.modelfiles.rope import config_rope, gguf_rope
from octavo.modelfiles.stored import exact_dtype, of_gguf

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layer in config.json."""
SILU = {"silu": "silu", "swish": "silu"}
"""Names of activations in config.json, and ours."""
COMMON: dict[str, Any] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_size": 4096,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
"""Keys that most classes read, with their usual defaults."""


@dataclass(frozen=True)
class Shape:
    """The sizes that all layers share."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    max_position: int

    def attention(self, rope: RopeFacts) -> AttentionFacts:
        """The usual one: scores scaled by the width of a head, no window, no biases."""
        return AttentionFacts(self.num_heads, self.num_kv_heads, self.head_dim, rope, self.head_dim**-0.5)


class Config(Fields):
    """config.json as the class in Transformers sees it: the keys that it reads, and its defaults where they are left
    out. `whole`: all keys of the file."""

    def __init__(self, file: str, architecture: str, whole: dict[str, Any], defaults: Mapping[str, Any]) -> None:
        super().__init__(file, {key: whole.get(key, default) for key, default in defaults.items()})
        self.architecture, self.whole = architecture, whole

    def shape(self) -> Shape:
        hidden = self.integer("hidden_size")
        heads = heads_of(self, hidden, "num_attention_heads", "num_key_value_heads", "head_dim")
        layers = self.integer("num_hidden_layers", high=MAX_LAYERS)
        return Shape(hidden, *heads, layers, self.integer("max_position_embeddings", high=MAX_POSITIONS))

    def rope(self, shape: Shape) -> RopeFacts:
        """The one that all layers have."""
        return config_rope(self.whole, self.file, shape.head_dim, shape.max_position)

    def activation(self, key: str, names: Mapping[str, str]) -> str:
        """`names`: those that are computed, and what they are called here."""
        name = self.string(key) or next(iter(names))
        if name not in names:
            served = next(iter(names))
            self.fail(key, f"{name!r:.40} is not supported here; {self.architecture} is served with {served} only")
        return names[name]

    def windows(self, num_layers: int, kinds: Sequence[str] | None = None) -> list[int | None]:
        """The sliding window of each layer. `kinds`: of the layers, where layer_types does not say."""
        window = None
        if self.boolean("use_sliding_window", True) and self.get("sliding_window") is not None:
            window = self.integer("sliding_window")
        found = self.get("layer_types")
        if found is None and kinds is None:
            first = self.integer("max_window_layers", 0, low=0)
            return [window if layer >= first else None for layer in range(num_layers)]
        found = list(kinds or ()) if found is None else found
        if not isinstance(found, list) or len(found) != num_layers or {*map(str, found)} - {FULL, SLIDING}:
            self.fail("layer_types", f"is not a list of {num_layers} names, {FULL} or {SLIDING}, one for each layer")
        if window is None and SLIDING in found:
            self.fail("layer_types", f"names {SLIDING}, and there is no sliding_window")
        return [window if kind == SLIDING else None for kind in found]

    def model(self, shape: Shape, layers: Sequence[LayerFacts], embedding_scale: float = 1.0) -> ModelFacts:
        whole = Fields(self.file, self.whole)
        return ModelFacts(
            architecture=self.architecture,
            layers=tuple(layers),
            hidden_size=shape.hidden_size,
            vocab_size=self.integer("vocab_size"),
            max_position=lengthened(shape.max_position, layers),
            norm_eps=self.number("rms_norm_eps"),
            tie_embeddings=self.boolean("tie_word_embeddings", False),
            embedding_scale=embedding_scale,
            dtype=whole.string("dtype") or whole.string("torch_dtype") or "bfloat16",
        )


@dataclass(frozen=True)
class Folder:
    """One architecture of a model folder. `defaults`: the keys of config.json that its class in Transformers reads, and
    their values where they are left out (None: see the reader)."""

    model_type: str
    defaults: Mapping[str, Any]
    read: Callable[[Config], ModelFacts]
    part: str | None = None
    """The key under which the config of the text model stands, where there are others beside it."""


class Header(Fields):
    """The keys of a GGUF file under its architecture's prefix, with the list of its tensors."""

    def __init__(self, file: str, header: GGUFHeader, architecture: str) -> None:
        super().__init__(file, header.metadata, architecture + ".")
        self.header, self.architecture = header, architecture

    def has(self, tensor: str) -> bool:
        return tensor in self.header.tensors

    def shape(self) -> Shape:
        hidden = self.integer("embedding_length")
        keys = "attention.head_count", "attention.head_count_kv", "attention.key_length"
        heads, kv_heads, head_dim = heads_of(self, hidden, *keys)
        if (value_dim := self.integer("attention.value_length", hidden // heads)) != head_dim:
            self.fail("attention.value_length", f"{value_dim} is not the key length {head_dim}, which is not supported")
        layers = self.integer("block_count", high=MAX_LAYERS)
        return Shape(hidden, heads, kv_heads, head_dim, layers, self.integer("context_length", high=MAX_POSITIONS))

    def rope(self, shape: Shape, partial: bool = False) -> RopeFacts:
        return gguf_rope(self, shape.head_dim, shape.max_position, self.has("rope_freqs.weight"), partial)

    def model(self, shape: Shape, layers: Sequence[LayerFacts], embedding_scale: float = 1.0) -> ModelFacts:
        return ModelFacts(
            architecture=self.architecture,
            layers=tuple(layers),
            hidden_size=shape.hidden_size,
            vocab_size=self._vocab_size(),
            max_position=shape.max_position,
            norm_eps=self.number("attention.layer_norm_rms_epsilon"),
            tie_embeddings=not self.has("output.weight"),
            embedding_scale=embedding_scale,
            dtype=exact_dtype(of_gguf(self.header)) or "bfloat16",
        )

    def _vocab_size(self) -> int:
        """Rows of the embedding; the token list must have as many."""
        general = Fields(self.file, self.header.metadata)
        table = self.header.tensors.get("token_embd.weight")
        tokens = general.get("tokenizer.ggml.tokens")
        if tokens is not None and (not isinstance(tokens, list) or not tokens):
            general.fail("tokenizer.ggml.tokens", "is not a list of tokens")
        if table is None:
            return self.integer("vocab_size", len(tokens) if tokens else None)
        if len(table.shape) != 2:
            raise ModelFileError(self.file, f"tensor 'token_embd.weight': shape {list(table.shape)} is not a matrix")
        if tokens and len(tokens) != table.shape[0]:
            general.fail(
                "tokenizer.ggml.tokens",
                f"{len(tokens)} tokens, but tensor 'token_embd.weight' has {table.shape[0]} rows",
            )
        return table.shape[0]


ReadGGUF = Callable[[Header], ModelFacts]


def windowed(
    attention: AttentionFacts, windows: Sequence[int | None], mlps: Sequence[MLPFacts | ExpertsFacts]
) -> list[LayerFacts]:
    """Layers whose attention differs in its window alone."""
    return [LayerFacts(replace(attention, window=window), mlp) for window, mlp in zip(windows, mlps, strict=True)]


def lengthened(max_position: int, layers: Sequence[LayerFacts]) -> int:
    """Positions of a folder's model: yarn reaches as far as its factor says, whatever the config says beside it."""
    ropes = [layer.mixer.rope for layer in layers if isinstance(layer.mixer, AttentionFacts)]
    reached = [int(rope.original_max_position * rope.factor) for rope in ropes if rope.scaling == "yarn"]
    return max([max_position, *reached])
