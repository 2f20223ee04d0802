"""Where the files of one model lie. Torch-free: the server reads tokenizers and templates through this, the engine
weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ModelFileError


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk: either one .gguf file, or a folder with config.json, safetensors and tokenizer.json."""

    name: str
    """Default name in the API: folder name, or file name without .gguf."""
    path: Path
    """What a client loads from: the .gguf file or the folder."""

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"


def locate(path: Path, name: str | None = None) -> ModelFiles:
    """Look at a local path; refuse what cannot be a model, saying what is missing."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelFileError(path.name, "not a .gguf file; give a .gguf file or a folder with safetensors")
        return ModelFiles(name or path.stem, path)
    if not path.is_dir():
        raise ModelFileError(str(path), "no such file or folder")
    if not (path / "config.json").is_file():
        raise ModelFileError(path.name, "folder has no config.json")
    return ModelFiles(name or path.name, path)
