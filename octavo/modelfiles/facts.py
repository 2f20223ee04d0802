"""What a model is, as plain numbers: from config.json or GGUF metadata, torch-free and before anything loads.

`read_facts` is called by config/resolve's caller, the server and the worker. Any architecture that describes itself in
the usual keys gives facts; whether it can run is for models/registry to say. Invariant: every number is in a range that
makes sense (no zero layers or heads, kv heads divide heads, finite eps and theta), so nobody checks again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn

from octavo.errors import ModelFileError
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.gguf import GGUFHeader, read_header
from octavo.modelfiles.jsonfile import read_object

MAX_LAYERS = 4096
MAX_SIZE = 1 << 24
MAX_POSITIONS = 1 << 30


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
    attention_factor: float | None = None
    """Yarn: multiplies cosines and sines; None: 0.1 * ln(factor) + 1."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0


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
    window_layers: tuple[int, ...] | None = None
    """Those with the sliding window, in order; None: all."""
    dtype: str = "bfloat16"
    hidden_act: str | None = None
    """The activation's name in config.json; None: the architecture's usual one (GGUF does not say)."""

    def window_of(self, layer: int) -> int | None:
        return self.sliding_window if self.window_layers is None or layer in self.window_layers else None

    def kv_bytes_per_token(self, element_size: float) -> int:
        """Bytes of K and V that one token takes over all layers."""
        return int(2 * self.num_layers * self.num_kv_heads * self.head_dim * element_size)


class _Fields:
    """Typed, range-checked look-up in one mapping of a model file. A JSON null counts as absent."""

    def __init__(self, file: str, values: dict[str, Any], prefix: str = "") -> None:
        self.file, self.values, self.prefix = file, values, prefix

    def fail(self, key: str, message: str) -> NoReturn:
        raise ModelFileError(self.file, f"{self.prefix}{key}: {message}")

    def get(self, key: str) -> Any:
        return self.values.get(self.prefix + key)

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE) -> int:
        """One integer. A list of equal integers (GGUF writes some values per layer) counts as that integer."""
        value = self.get(key)
        if isinstance(value, list) and value:
            if any(type(x) is not int or x != value[0] for x in value):
                self.fail(key, "differs between layers, which is not supported yet")
            value = value[0]
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if type(value) is not int:
            self.fail(key, f"{value!r:.80} is not an integer")
        if not low <= value <= high:
            self.fail(key, f"{value} is not within {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0) -> float:
        """One finite number greater than `low`."""
        value = self.get(key)
        if value is None:
            if default is None:
                self.fail(key, "is missing")
            return default
        if type(value) not in (int, float):
            self.fail(key, f"{value!r:.80} is not a number")
        if not low < value <= 1e30 or not math.isfinite(value):
            self.fail(key, f"{value!r:.80} is not a finite number above {low:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            self.fail(key, f"{value!r:.80} is not true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str | None:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not str:
            self.fail(key, f"{value!r:.80} is not a string")
        return value

    def part(self, key: str) -> _Fields | None:
        """The object under `key`, or None."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(key, f"{value!r:.80} is not an object")
        return _Fields(self.file, value)


def read_facts(files: ModelFiles) -> ModelFacts:
    """Raises ModelFileError that names the file and the key when something is missing, wrong or inconsistent."""
    if files.is_gguf:
        return gguf_facts(read_header(files.path), files.path.name)
    return config_facts(read_object(files.path / "config.json"), "config.json")


def _heads(fields: _Fields, hidden: int, heads_key: str, kv_key: str, dim_key: str) -> tuple[int, int, int]:
    """(heads, kv heads, head_dim), consistent with one another."""
    heads = fields.integer(heads_key, high=65536)
    kv_heads = fields.integer(kv_key, heads, high=65536)
    if heads % kv_heads:
        fields.fail(kv_key, f"{kv_heads} does not divide the {heads} heads")
    if fields.get(dim_key) is None and hidden % heads:
        fields.fail(heads_key, f"{heads} does not divide the hidden size {hidden}, and {dim_key} is missing")
    return heads, kv_heads, fields.integer(dim_key, hidden // heads, high=65536)


def _rotary_dim(fields: _Fields, key: str, rotary_dim: int, head_dim: int) -> int:
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        fields.fail(key, f"{rotary_dim} rotary dimensions; needed is an even number up to head_dim {head_dim}")
    return rotary_dim


# ---- config.json --------------------------------------------------------------------------------------------------


def config_facts(config: dict[str, Any], file: str) -> ModelFacts:
    """Facts from the keys Transformers writes; a multimodal model's text part lies under text_config."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelFileError(file, "architectures: is missing or not a list of names")
    if config.get("quantization_config") is not None:
        raise ModelFileError(file, "quantization_config: quantized safetensors are not supported yet; use a GGUF file")
    if "hidden_size" not in config and isinstance(config.get("text_config"), dict):
        config = {**config, **config["text_config"]}
    fields = _Fields(file, config)
    hidden = fields.integer("hidden_size")
    heads, kv_heads, head_dim = _heads(fields, hidden, "num_attention_heads", "num_key_value_heads", "head_dim")
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    window, window_layers = _config_window(fields, num_layers, names[0].startswith("Qwen"))
    max_position = fields.integer("max_position_embeddings", high=MAX_POSITIONS)
    return ModelFacts(
        architecture=names[0],
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=fields.integer("vocab_size"),
        max_position=max_position,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=_config_rope(fields, head_dim, max_position),
        tie_embeddings=fields.boolean("tie_word_embeddings", names[0].startswith("Gemma")),
        attention_bias=fields.boolean("attention_bias", False),
        mlp_bias=fields.boolean("mlp_bias", False),
        sliding_window=window,
        window_layers=window_layers,
        dtype=fields.string("dtype") or fields.string("torch_dtype") or "bfloat16",
        hidden_act=fields.string("hidden_act") or fields.string("hidden_activation"),
    )


def _config_window(fields: _Fields, num_layers: int, qwen: bool) -> tuple[int | None, tuple[int, ...] | None]:
    """The sliding window, and the layers that have it when not all have. Qwen's configs name one that is not used
    unless they say so, and then only from a certain layer on."""
    window = fields.integer("sliding_window") if fields.get("sliding_window") is not None else None
    if window is None or not fields.boolean("use_sliding_window", not qwen):
        return None, None
    kinds = fields.get("layer_types")
    if kinds is None:
        first = fields.integer("max_window_layers", 28 if qwen else 0, low=0)
        return window, tuple(range(first, num_layers)) if first else None
    if not isinstance(kinds, list) or len(kinds) != num_layers or not all(isinstance(kind, str) for kind in kinds):
        fields.fail("layer_types", f"is not a list of {num_layers} names, one for each layer")
    return window, tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")


def _config_rope(fields: _Fields, head_dim: int, max_position: int) -> RopeFacts:
    """Newer files hold everything in rope_parameters, older ones rope_theta beside an optional rope_scaling."""
    scaling = fields.part("rope_parameters") or fields.part("rope_scaling") or _Fields(fields.file, {})
    by_layer_type = scaling.part("full_attention")
    scaling = by_layer_type or scaling
    theta = scaling.number("rope_theta", fields.number("rope_theta", 10000.0))
    share = scaling.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    rotary_dim = _rotary_dim(fields, "partial_rotary_factor", int(head_dim * min(share, 2.0)), head_dim)
    kind = scaling.string("rope_type") or scaling.string("type") or "default"
    if kind == "default":
        return RopeFacts(theta=theta, rotary_dim=rotary_dim)
    if kind not in ("linear", "llama3", "yarn"):
        scaling.fail("rope_type", f"{kind!r:.40} is not supported yet; linear, llama3 and yarn are")
    original = scaling.integer(
        "original_max_position_embeddings",
        max_position if kind != "llama3" else None,
        high=MAX_POSITIONS,
    )
    low, high = scaling.number("low_freq_factor", 1.0), scaling.number("high_freq_factor", 4.0)
    if kind == "llama3" and low >= high:
        scaling.fail("low_freq_factor", f"{low:g} is not below high_freq_factor {high:g}")
    return RopeFacts(
        theta=theta,
        rotary_dim=rotary_dim,
        scaling=kind,
        factor=scaling.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=original,
        attention_factor=scaling.number("attention_factor") if scaling.get("attention_factor") is not None else None,
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
    )


# ---- GGUF ---------------------------------------------------------------------------------------------------------

_FILE_TYPES = {0: "float32", 1: "float16", 32: "bfloat16"}


def gguf_facts(header: GGUFHeader, file: str) -> ModelFacts:
    """Facts from the keys under the architecture's own prefix, e.g. llama.block_count."""
    general = _Fields(file, header.metadata)
    architecture = general.string("general.architecture")
    if not architecture:
        general.fail("general.architecture", "is missing")
    if general.integer("split.count", 1, low=0) > 1:
        general.fail("split.count", "one file of several; join them with gguf-split --merge first")
    fields = _Fields(file, header.metadata, architecture + ".")
    hidden = fields.integer("embedding_length")
    heads, kv_heads, head_dim = _heads(
        fields, hidden, "attention.head_count", "attention.head_count_kv", "attention.key_length"
    )
    if fields.integer("attention.value_length", head_dim) != head_dim:
        fields.fail("attention.value_length", f"differs from the key length {head_dim}, which is not supported yet")
    window = fields.get("attention.sliding_window")
    max_position = fields.integer("context_length", high=MAX_POSITIONS)
    return ModelFacts(
        architecture=architecture,
        num_layers=fields.integer("block_count", high=MAX_LAYERS),
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_gguf_vocab_size(header, fields, general),
        max_position=max_position,
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", 1e-6),
        rope=_gguf_rope(header, fields, head_dim, max_position),
        tie_embeddings="output.weight" not in header.tensors,
        attention_bias="blk.0.attn_q.bias" in header.tensors,
        mlp_bias="blk.0.ffn_up.bias" in header.tensors,
        sliding_window=fields.integer("attention.sliding_window") if window else None,
        dtype=_FILE_TYPES.get(general.integer("general.file_type", -1, low=-1), "bfloat16"),
    )


def _gguf_vocab_size(header: GGUFHeader, fields: _Fields, general: _Fields) -> int:
    """Rows of the embedding; the token list must have as many."""
    table = header.tensors.get("token_embd.weight")
    tokens = general.get("tokenizer.ggml.tokens")
    if tokens is not None and (not isinstance(tokens, list) or not tokens):
        general.fail("tokenizer.ggml.tokens", "is not a list of tokens")
    if table is None:
        return fields.integer("vocab_size", len(tokens) if tokens else None)
    if len(table.shape) != 2:
        raise ModelFileError(fields.file, f"tensor 'token_embd.weight': shape {list(table.shape)} is not a matrix")
    if tokens and len(tokens) != table.shape[0]:
        general.fail(
            "tokenizer.ggml.tokens", f"{len(tokens)} tokens, but tensor 'token_embd.weight' has {table.shape[0]} rows"
        )
    return table.shape[0]


def _gguf_rope(header: GGUFHeader, fields: _Fields, head_dim: int, max_position: int) -> RopeFacts:
    key = "rope.dimension_count"
    rotary_dim = _rotary_dim(fields, key, fields.integer(key, head_dim, low=0), head_dim)
    theta = fields.number("rope.freq_base", 10000.0)
    if "rope_freqs.weight" in header.tensors:
        return RopeFacts(theta=theta, rotary_dim=rotary_dim, scaling="factors")
    kind = fields.string("rope.scaling.type") or ("linear" if fields.get("rope.scale_linear") else "none")
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return RopeFacts(theta=theta, rotary_dim=rotary_dim)
    if kind not in ("linear", "yarn"):
        fields.fail("rope.scaling.type", f"{kind!r:.40} is not supported yet; linear and yarn are")
    # The file's factor multiplies the usual one, config.json's replaces it.
    attention_factor = fields.number("rope.scaling.attn_factor", 1.0) * (0.1 * math.log(max(factor, 1.0)) + 1.0)
    return RopeFacts(
        theta=theta,
        rotary_dim=rotary_dim,
        scaling=kind,
        factor=factor,
        original_max_position=fields.integer("rope.scaling.original_context_length", max_position, high=MAX_POSITIONS),
        attention_factor=attention_factor if kind == "yarn" else None,
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
    )
