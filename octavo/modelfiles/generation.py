"""A model's own sampling defaults: generation_config.json of a folder, `general.sampling.*` of a GGUF. Torch-free.

Called by the clients once per model. What such a file does not say stays None (or empty), so callers can tell "the
model says 1.0" from "the model says nothing". Lengths (max_new_tokens, max_length) are not taken over: they are
limits of the file's author, not of the model.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from octavo.errors import ModelFileError
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.gguf import read_header
from octavo.types import SamplingParams

_FOLDER_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_GGUF_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
_MAX_BYTES = 1 << 20


def sampling_defaults(files: ModelFiles) -> SamplingParams:
    """The fields the model sets; its end-of-sequence ids as `stop_token_ids`. Raises ModelFileError on a value that
    cannot be, naming its key."""
    return _from_gguf(files) if files.is_gguf else _from_folder(files)


def _from_gguf(files: ModelFiles) -> SamplingParams:
    metadata = read_header(files.path).metadata
    found = {field: metadata[key] for key, field in _GGUF_KEYS.items() if key in metadata}
    return _params(found, files.path.name)


def _from_folder(files: ModelFiles) -> SamplingParams:
    path = files.path / "generation_config.json"
    if not path.is_file():
        return SamplingParams()
    if path.stat().st_size > _MAX_BYTES:
        raise ModelFileError(path.name, f"larger than {_MAX_BYTES} bytes")
    try:
        config = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelFileError(path.name, f"not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelFileError(path.name, "not a JSON object")
    found = {key: config[key] for key in _FOLDER_KEYS if config.get(key) is not None}
    eos = config.get("eos_token_id")
    if eos is not None:
        found["stop_token_ids"] = eos if isinstance(eos, list) else [eos]
    return _params(found, path.name)


def _params(found: dict[str, Any], file: str) -> SamplingParams:
    for key, value in found.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelFileError(file, f"sampling default {key} is {value}, not a finite number")
    try:
        return msgspec.convert(found, SamplingParams)
    except msgspec.ValidationError as error:
        raise ModelFileError(file, f"sampling defaults: {error}") from None
