"""Which of a repository's files a model needs, from the listing of a hub or of a folder."""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from octavo.errors import DownloadError, ModelFileError
from octavo.modelfiles.jsonfile import read_object
from octavo.modelfiles.safetensors import INDEX_FILE

_BESIDE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "preprocessor_config.json",
    "*.jinja",
)
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def is_safe(path: str) -> bool:
    """Whether a name from a listing may become a path below a folder of ours."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or len(path) > 255 or set(path) & {"\\", "\0", ":"}:
        return False
    return all(not part.startswith(".") for part in parts)


def wanted(paths: Collection[str], gguf_file: str | None, label: str) -> list[str]:
    """The one named .gguf file, or config, tokenizer, templates and safetensors of the top folder.

    Raises DownloadError that says what the repository has instead.
    """
    ggufs = sorted(path for path in paths if path.endswith(".gguf") and is_safe(path))
    if gguf_file is not None:
        if gguf_file not in ggufs:
            raise DownloadError(f"{label}: has no file {gguf_file!r}; its .gguf files: {', '.join(ggufs) or 'none'}")
        return [gguf_file]
    weights = _weights(paths)
    if not weights and ggufs:
        raise DownloadError(f"{label}: has .gguf files; choose one with --gguf-file: {', '.join(ggufs)}")
    if not weights:
        others = sorted(path for path in paths if path.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx")))
        has = f"only {', '.join(others[:5])}" if others else "no weights"
        raise DownloadError(f"{label}: has {has}; Octavo loads safetensors or GGUF files only")
    if "config.json" not in paths:
        raise DownloadError(f"{label}: has no config.json; Octavo cannot tell what model it is")
    beside = [path for path in sorted(paths) if any(fnmatchcase(path, pattern) for pattern in _BESIDE_WEIGHTS)]
    return [path for path in beside if "/" not in path and is_safe(path)] + weights


def _weights(paths: Collection[str]) -> list[str]:
    """The safetensors that Transformers would load; not other copies of the same weights beside them."""
    if INDEX_FILE in paths:
        return [INDEX_FILE, *sorted(path for path in paths if _SHARD.fullmatch(path))]
    if "model.safetensors" in paths:
        return ["model.safetensors"]
    return sorted(path for path in paths if path.endswith(".safetensors") and "/" not in path and is_safe(path))


def missing_shards(folder: Path) -> list[str]:
    """Files that the index in `folder` names and that are not there; the index itself where it cannot be read."""
    if not (folder / INDEX_FILE).is_file():
        return []
    try:
        places = read_object(folder / INDEX_FILE).get("weight_map")
    except ModelFileError:
        return [INDEX_FILE]
    names = set(places.values()) if isinstance(places, dict) else {INDEX_FILE}
    return sorted(str(name) for name in names if not (folder / str(name)).is_file())
