"""Where the files of one model lie. Torch-free: the server reads tokenizers and templates through this, the engine
weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from octavo.errors import ModelFileError

_PLAIN = "".join(chr(code) for code in range(33, 127) if chr(code) != "%")


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

    @property
    def address(self) -> str:
        """The whole path as text that every message can carry: a file's name is bytes, which need not be UTF-8."""
        return quote_from_bytes(os.fsencode(self.path.resolve()), safe=_PLAIN)

    @classmethod
    def at(cls, address: str, name: str) -> ModelFiles:
        return cls(name, Path(os.fsdecode(unquote_to_bytes(address))))


def locate(path: Path, name: str | None = None) -> ModelFiles:
    """Look at a local path; refuse what cannot be a model, saying what is missing."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelFileError(path.name, "not a .gguf file; give a .gguf file or a folder with safetensors")
        return ModelFiles(name or _as_text(path.stem), path)
    if not path.is_dir():
        raise ModelFileError(str(path), "no such file or folder")
    if not (path / "config.json").is_file():
        raise ModelFileError(path.name, "folder has no config.json")
    return ModelFiles(name or _as_text(path.name), path)


def _as_text(name: str) -> str:
    """A file's name as an API can show it."""
    return os.fsencode(name).decode(errors="replace")
