"""Facts of a folder: config.json, read as the class in Transformers that its architecture names would read it."""

from __future__ import annotations

from typing import Any

from octavo.errors import ModelFileError
from octavo.modelfiles import architectures
from octavo.modelfiles.architectures import FOLDERS, Folder
from octavo.modelfiles.facts import ModelFacts
from octavo.modelfiles.fields import MAX_LAYERS, MAX_POSITIONS, Fields, heads_of
from octavo.modelfiles.rope import FULL, SLIDING, config_rope

REFUSED = {
    "quantization_config": "quantized safetensors are not supported yet; use a GGUF file",
    "per_layer_config": "layers that differ from one another are not supported yet",
}
"""Keys that change what every class computes."""
SILU = ("silu", "swish")


def config_facts(config: dict[str, Any], file: str) -> ModelFacts:
    """Raises ModelFileError that names `file` and the key."""
    name, folder = _architecture(config, file)
    for key, why in REFUSED.items():
        if config.get(key) is not None:
            raise ModelFileError(file, f"{key}: {why}")
    fields = Fields(file, {key: config.get(key, default) for key, default in folder.defaults.items()})
    hidden = fields.integer("hidden_size")
    heads, kv_heads, head_dim = heads_of(fields, hidden, "num_attention_heads", "num_key_value_heads", "head_dim")
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    window, window_layers = _window(fields, num_layers)
    max_position = fields.integer("max_position_embeddings", high=MAX_POSITIONS)
    rope = config_rope(config, file, head_dim, max_position)
    if rope.scaling == "yarn":
        max_position = max(max_position, int(rope.original_max_position * rope.factor))
    if (activation := fields.string("hidden_act", "silu")) not in SILU:
        fields.fail("hidden_act", f"{activation!r:.40} is not supported here; {name} is served with {SILU[0]} only")
    attention_bias = fields.boolean("attention_bias", False)
    return ModelFacts(
        architecture=name,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=fields.integer("vocab_size"),
        max_position=max_position,
        norm_eps=fields.number("rms_norm_eps"),
        rope=rope,
        tie_embeddings=fields.boolean("tie_word_embeddings", False),
        qkv_bias=attention_bias if folder.qkv_bias is None else folder.qkv_bias,
        out_bias=attention_bias,
        mlp_bias=fields.boolean("mlp_bias", False),
        sliding_window=window,
        window_layers=window_layers,
        dtype=_dtype(Fields(file, config)),
    )


def _architecture(config: dict[str, Any], file: str) -> tuple[str, Folder]:
    """The name in `architectures`, which model_type must not contradict, or by model_type where there is none."""
    names, model_type = config.get("architectures"), config.get("model_type")
    if names is None and isinstance(model_type, str):
        found = next((name for name, folder in FOLDERS.items() if folder.model_type == model_type), None)
        if found is None:
            architectures.refuse(file, model_type, tuple(folder.model_type for folder in FOLDERS.values()))
        return found, FOLDERS[found]
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelFileError(file, "architectures: is missing or not a list of names")
    folder = FOLDERS.get(names[0])
    if folder is None:
        architectures.refuse(file, names[0], tuple(FOLDERS))
    if model_type not in (None, folder.model_type):
        raise ModelFileError(
            file, f"model_type: {model_type!r:.40} contradicts architectures, by which it is {folder.model_type!r}"
        )
    return names[0], folder


def _dtype(fields: Fields) -> str:
    return fields.string("dtype") or fields.string("torch_dtype") or "bfloat16"


def _window(fields: Fields, num_layers: int) -> tuple[int | None, tuple[int, ...] | None]:
    """The sliding window, and the layers that have it when not all have."""
    window = fields.integer("sliding_window") if fields.get("sliding_window") is not None else None
    if not fields.boolean("use_sliding_window", True):
        window = None
    kinds = fields.get("layer_types")
    if kinds is None:
        first = fields.integer("max_window_layers", 0, low=0)
        return window, tuple(range(first, num_layers)) if first and window is not None else None
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in (FULL, SLIDING) for kind in kinds):
        fields.fail("layer_types", f"is not a list of {num_layers} names, {FULL} or {SLIDING}, one for each layer")
    if window is None and SLIDING in kinds:
        fields.fail("layer_types", f"names {SLIDING}, and there is no sliding_window")
    return window, None if window is None else tuple(i for i, kind in enumerate(kinds) if kind == SLIDING)
