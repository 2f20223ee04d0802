"""One JSON object from a file of a model folder, read with limits: size, depth, number length, duplicate keys.

Called by facts, safetensors and whoever reads config files. Every failure is a ModelFileError that names the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.errors import ModelFileError

MAX_CONFIG_BYTES = 16 << 20


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:80]!r} appears twice")
        found[key] = value
    return found


def parse_object(text: bytes, file: str) -> dict[str, Any]:
    """`text` as a JSON object with unique keys. `file` is named in errors."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ModelFileError(file, "JSON is nested too deeply") from None
    except ValueError as error:
        raise ModelFileError(file, f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelFileError(file, f"JSON holds a {type(value).__name__}, not an object")
    return value


def read_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in `path`."""
    try:
        if not path.is_file():
            raise ModelFileError(path.name, "no such file")
        if path.stat().st_size > max_bytes:
            raise ModelFileError(path.name, f"larger than {max_bytes} bytes")
        return parse_object(path.read_bytes(), path.name)
    except OSError as error:
        raise ModelFileError(path.name, f"cannot be read: {error.strerror or error}") from error
