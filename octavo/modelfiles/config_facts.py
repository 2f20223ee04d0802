"""Facts of a folder: config.json, read as the class in Transformers that its architecture names would read it."""

from __future__ import annotations

from typing import Any

from octavo.errors import ModelFileError
from octavo.modelfiles.facts import ModelFacts
from octavo.modelfiles.families import FOLDERS
from octavo.modelfiles.families.reading import Config
from octavo.modelfiles.fields import refuse_architecture

REFUSED = {
    "quantization_config": "quantized safetensors are not supported yet; use a GGUF file",
    "per_layer_config": "layers that differ from one another are not supported yet",
}
"""Keys that change what every class computes."""


def config_facts(config: dict[str, Any], file: str) -> ModelFacts:
    """Raises ModelFileError that names `file` and the key."""
    name = _architecture(config, file)
    folder = FOLDERS[name]
    text = config if folder.part is None else _part(config, folder.part, file)
    for key, why in REFUSED.items():
        if config.get(key) is not None or text.get(key) is not None:
            raise ModelFileError(file, f"{key}: {why}")
    return folder.read(Config(file, name, text, folder.defaults))


def _part(config: dict[str, Any], key: str, file: str) -> dict[str, Any]:
    """The text model's config. Whether its embedding is its head too, the whole model's says."""
    part = config.get(key)
    if not isinstance(part, dict):
        raise ModelFileError(file, f"{key}: is missing or not an object")
    dtype = part.get("dtype") or part.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    return {**part, "tie_word_embeddings": config.get("tie_word_embeddings", False), "dtype": dtype}


def _architecture(config: dict[str, Any], file: str) -> str:
    """The name among the families, which model_type must not contradict, or by model_type where there is none."""
    names, model_type = config.get("architectures"), config.get("model_type")
    if names is None and isinstance(model_type, str):
        found = next((name for name, folder in FOLDERS.items() if folder.model_type == model_type), None)
        if found is None:
            refuse_architecture(file, model_type, [folder.model_type for folder in FOLDERS.values()])
        return found
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelFileError(file, "architectures: is missing or not a list of names")
    folder = FOLDERS.get(names[0])
    if folder is None:
        refuse_architecture(file, names[0], FOLDERS)
    if model_type not in (None, folder.model_type):
        raise ModelFileError(
            file, f"model_type: {model_type!r:.40} contradicts architectures, by which it is {folder.model_type!r}"
        )
    return names[0]
