"""A model's own sampling defaults: generation_config.json of a folder, `general.sampling.*` of a GGUF. Torch-free.

Called by the clients once per model. What such a file does not say stays None (or empty), so callers can tell "the
model says 1.0" from "the model says nothing". Lengths (max_new_tokens, max_length) are not taken over: they are
limits of the file's author, not of the model.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import ModelFileError
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.gguf import read_header
from octavo.modelfiles.jsonfile import read_object
from octavo.types import SamplingParams

logger = logging.getLogger(__name__)

_FOLDER_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_GGUF_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
_GENERATION, _CONFIG = "generation_config.json", "config.json"


def sampling_defaults(files: ModelFiles) -> SamplingParams:
    """The fields the model sets; its end-of-sequence ids as `stop_token_ids`. Raises ModelFileError on a value that
    cannot be, naming its key."""
    return _from_gguf(files) if files.is_gguf else _from_folder(files)


def _from_gguf(files: ModelFiles) -> SamplingParams:
    metadata = read_header(files.path).metadata
    found = {field: metadata[key] for key, field in _GGUF_KEYS.items() if key in metadata}
    return _params(found, files.path.name)


def _from_folder(files: ModelFiles) -> SamplingParams:
    path = files.path / _GENERATION
    if not path.is_file():
        return SamplingParams()
    config = read_object(path)
    found = {key: config[key] for key in _FOLDER_KEYS if config.get(key) is not None}
    if config.get("eos_token_id") is not None:
        found["stop_token_ids"] = end_ids(files.path, _GENERATION)
    return _params(found, path.name)


def end_ids(folder: Path, *names: str) -> list[int]:
    """The ids that end a generation according to generation_config.json and config.json (or those of `names`). Ids
    without a row in the model can never come, and are left out. Raises ModelFileError for what are no ids."""
    configs = {name: read_object(folder / name) for name in (_GENERATION, _CONFIG) if (folder / name).is_file()}
    if _CONFIG in configs and isinstance(text := configs[_CONFIG].get("text_config"), dict):  # of several models
        configs[_CONFIG] = {**text, **configs[_CONFIG]}
    size = configs.get(_CONFIG, {}).get("vocab_size")
    found: dict[int, None] = {}
    for name in names or configs:
        value = configs[name].get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int for i in ids):
            raise ModelFileError(name, f"eos_token_id is {value!r:.80}; expected token ids")
        outside = [i for i in ids if i < 0 or (type(size) is int and i >= size)]
        if outside:
            logger.warning("%s: eos_token_id %s: not in the vocabulary of %s, left out", name, outside[0], size)
        found.update(dict.fromkeys(i for i in ids if i not in outside))
    return list(found)


def _params(found: dict[str, Any], file: str) -> SamplingParams:
    # As in a request, 50.0 is a top_k; some libraries write it so.
    if isinstance(top_k := found.get("top_k"), float) and top_k.is_integer():
        found = {**found, "top_k": int(top_k)}
    for key, value in found.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelFileError(file, f"sampling default {key} is {value}, not a finite number")
        try:
            msgspec.convert({key: value}, SamplingParams)
        except msgspec.ValidationError:
            raise ModelFileError(file, f"sampling default {key} is {value!r:.80}, which it cannot be") from None
    return msgspec.convert(found, SamplingParams)
