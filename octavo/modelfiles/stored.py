"""How the numbers of a model are stored, from the headers of its files alone."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from pathlib import Path

from octavo.modelfiles import gguf, safetensors
from octavo.modelfiles.files import ModelFiles

Shaped = tuple[str, tuple[int, ...]]
"""Type and shape of a tensor."""


def count_numbers(files: ModelFiles, without: tuple[str, ...] = ()) -> dict[str, int]:
    """Of each type in the file. `without`: names of a folder's tensors that are not taken. Raises ModelFileError."""
    return _count(of_gguf(gguf.read_header(files.path)) if files.is_gguf else of_folder(files.path, without))


def exact_dtype(tensors: Iterable[Shaped]) -> str | None:
    """The compute type in which the matrices are what the file says: float16 or float32 where they are stored so, else
    bfloat16, which goes with quantized ones too. Of F16 and F32 ones together it is that of most numbers. None: there
    are no matrices."""
    found = _count((kind, shape) for kind, shape in tensors if len(shape) > 1)
    if not found or not found.keys() <= {"F16", "F32", "F64"}:
        return "bfloat16" if found else None
    return "float16" if 2 * found.get("F16", 0) > sum(found.values()) else "float32"


def of_gguf(header: gguf.GGUFHeader) -> list[Shaped]:
    return [(gguf.GGML_TYPES[info.type].name, info.shape) for info in header.tensors.values()]


def of_folder(folder: Path, without: tuple[str, ...] = ()) -> list[Shaped]:
    """Raises ModelFileError, also where there are no weights."""
    headers = safetensors.find_tensors(folder).values()
    every = (info for header in headers for info in header.tensors.values())
    return [(info.dtype, info.shape) for info in every if info.name not in without]


def has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (safetensors.SINGLE_FILE, safetensors.INDEX_FILE))


def _count(tensors: Iterable[Shaped]) -> dict[str, int]:
    found: dict[str, int] = {}
    for kind, shape in tensors:
        found[kind] = found.get(kind, 0) + prod(shape)
    return found
