"""The headers of safetensors files, torch-free: which tensors a model folder holds and where each lies.

Called by weights/safetensors.py. Invariant: as for GGUF, nothing is used before it was checked against the bytes that
are there; dtype, shape and byte range of every tensor agree, and the ranges cover the file's data without a hole or an
overlap. Anything else is a ModelFileError that names the file and the tensor or key.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from octavo.errors import ModelFileError
from octavo.modelfiles.jsonfile import parse_object, read_object

MAX_HEADER_BYTES = 32 << 20
"""300,000 tensors fit; the format itself allows 100 MB."""
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_DIMS = 8
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt"})

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Element sizes. Which dtypes can be loaded is for weights/formats to say."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor. `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """Tensors stand in the order of their data."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def _read_json(path: Path) -> tuple[dict[str, Any], int, int]:
    """(header object, start of the data, size of the file)."""
    try:
        if not path.is_file():
            raise ModelFileError(path.name, "no such file")
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 10 or length < 2:
                raise ModelFileError(path.name, "too short to be a safetensors file")
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ModelFileError(
                    path.name, f"header of {length} bytes in a file of {size}; at most {MAX_HEADER_BYTES} are allowed"
                )
            text = file.read(length)
    except OSError as error:
        raise ModelFileError(path.name, f"cannot be read: {error.strerror or error}") from error
    if not text.startswith(b"{"):
        raise ModelFileError(path.name, "header does not start with '{': not a safetensors file")
    return parse_object(text, path.name), 8 + length, size


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensor(file: str, name: str, entry: object, data_start: int, size: int) -> TensorInfo:
    def fail(message: str) -> NoReturn:
        raise ModelFileError(file, f"tensor {name[:80]!r}: {message}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        fail("needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        fail(f"unknown dtype {dtype!r:.40}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(_is_count, shape)):
        fail(f"shape {shape!r:.80} is not a list of up to {MAX_DIMS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        fail(f"data_offsets {offsets!r:.80} are not two positions")
    begin, end = offsets
    if begin > end:
        fail(f"data_offsets {offsets} end before they begin")
    if data_start + end > size:
        fail(f"data_offsets {offsets} run past the end of the file ({size} bytes); it is truncated or damaged")
    nbytes = prod(shape) * DTYPE_BYTES[dtype]
    if nbytes != end - begin:
        fail(f"shape {shape} of {dtype} takes {nbytes} bytes, data_offsets {offsets} hold {end - begin}")
    return TensorInfo(name, dtype, tuple(shape), data_start + begin, nbytes)


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of one file. Raises ModelFileError for whatever is wrong with it."""
    entries, data_start, size = _read_json(path)
    metadata = entries.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFileError(path.name, "__metadata__ is not an object of strings")
    found = [_tensor(path.name, name, entry, data_start, size) for name, entry in entries.items()]
    found.sort(key=lambda info: (info.offset, info.nbytes))
    expected = data_start
    for info in found:
        if info.offset != expected:
            problem = "overlaps another tensor" if info.offset < expected else "leaves a hole before it"
            raise ModelFileError(path.name, f"tensor {info.name[:80]!r}: its data {problem}")
        expected += info.nbytes
    if expected != size:
        raise ModelFileError(path.name, f"{size - expected} bytes at the end belong to no tensor")
    return SafetensorsHeader({info.name: info for info in found}, metadata)


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor name → file name in the same folder."""
    index = read_object(folder / INDEX_FILE, MAX_HEADER_BYTES)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelFileError(INDEX_FILE, "weight_map is missing or empty")
    for name, file in places.items():
        plain = isinstance(file, str) and file.endswith(".safetensors") and not set(file) & set("/\\\0")
        if not plain:
            raise ModelFileError(
                INDEX_FILE, f"tensor {name[:80]!r}: {file!r:.80} is not the name of a .safetensors file in this folder"
            )
    return places


def _read_shards(folder: Path) -> dict[Path, SafetensorsHeader]:
    places = _read_index(folder)
    shards = {file: read_header(folder / file) for file in sorted(set(places.values()))}
    for file, header in shards.items():
        for name in header.tensors:
            if places.get(name) != file:
                where = f"in {places[name]}" if name in places else "nowhere"
                raise ModelFileError(file, f"tensor {name[:80]!r} is here, but {where} according to {INDEX_FILE}")
    for name, file in places.items():
        if name not in shards[file].tensors:
            raise ModelFileError(file, f"tensor {name[:80]!r} is missing; {INDEX_FILE} says it is here")
    return {folder / file: header for file, header in shards.items()}


def find_tensors(folder: Path) -> dict[Path, SafetensorsHeader]:
    """The safetensors files of a model folder with their headers. A name is in one file only."""
    if (folder / SINGLE_FILE).is_file():
        return {folder / SINGLE_FILE: read_header(folder / SINGLE_FILE)}
    if (folder / INDEX_FILE).is_file():
        return _read_shards(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ModelFileError(
            pickles[0], "pickled weights are never loaded, they can run code; convert the model to safetensors"
        )
    raise ModelFileError(folder.name, f"holds neither {SINGLE_FILE} nor {INDEX_FILE}")
