"""The header of a .gguf file (versions 2 and 3), torch-free: metadata and where each tensor lies.

Called by facts, text (vocabulary, template) and weights/gguf.py. Invariant: nothing read from the file is used as a
length, count, offset, shape, type or alignment before it was checked against the bytes that are really there, so a
header that `read_header` returns can be mapped and sliced without further checks. Anything else is a ModelFileError
that names the file and the key or tensor.
"""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from weakref import WeakValueDictionary

from octavo.errors import ModelFileError

MAX_DIMS = 4
MAX_KEY_BYTES = 65535
MAX_NAME_BYTES = 63
MAX_STRING_BYTES = 16 << 20
"""Of one value; a whole tokenizer.json is the longest there is. In arrays, where tokens and merges are:"""
MAX_ELEMENT_BYTES = 1 << 20
MAX_ARRAY_ELEMENTS = 1 << 22
"""Over all arrays of a file. The largest vocabularies have 0.3 million tokens and 0.5 million merges."""
DEFAULT_ALIGNMENT = 32
_MIN_KV_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8


class GGMLType(NamedTuple):
    """One way to store elements: `block` elements along a row take `nbytes` bytes."""

    name: str
    block: int
    nbytes: int


GGML_TYPES: dict[int, GGMLType] = {
    number: GGMLType(*row)
    for number, row in {
        0: ("F32", 1, 4),
        1: ("F16", 1, 2),
        2: ("Q4_0", 32, 18),
        3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
        9: ("Q8_1", 32, 40),
        10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210),
        15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66),
        17: ("IQ2_XS", 256, 74),
        18: ("IQ3_XXS", 256, 98),
        19: ("IQ1_S", 256, 50),
        20: ("IQ4_NL", 32, 18),
        21: ("IQ3_S", 256, 110),
        22: ("IQ2_S", 256, 82),
        23: ("IQ4_XS", 256, 136),
        24: ("I8", 1, 1),
        25: ("I16", 1, 2),
        26: ("I32", 1, 4),
        27: ("I64", 1, 8),
        28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2),
        34: ("TQ1_0", 256, 54),
        35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17),
    }.items()
}
"""Types whose size is known. Which of them can be loaded is for weights/formats to say."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY, _UINT32 = 7, 8, 9, 4


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file. `shape` is in torch order (rows first), `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """`metadata`: int, float, bool, str or a list of one of these. Tensors stand in file order."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    alignment: int


class IncompleteError(Exception):
    """The header goes on in a part of the file that is not here yet."""


class _Reader:
    """A cursor over the mapped file, or over the beginning of one of `size` bytes. `where` says what is being read, for
    error messages."""

    def __init__(self, data: mmap.mmap, file: str, size: int) -> None:
        self.data, self.file, self.end, self.have = data, file, size, len(data)
        self.pos = 0
        self.where = "header"
        self.num_elements = 0

    def fail(self, message: str) -> NoReturn:
        raise ModelFileError(self.file, f"{self.where}: {message}")

    def need(self, count: int, what: str) -> None:
        if count > self.end - self.pos:
            self.fail(f"{what} needs {count} bytes at byte {self.pos}, the file has {self.end} bytes")
        if count > self.have - self.pos:
            raise IncompleteError

    def number(self, code: str, what: str) -> Any:
        size = struct.calcsize("<" + code)
        self.need(size, what)
        value = struct.unpack_from("<" + code, self.data, self.pos)[0]
        self.pos += size
        return value

    def string(self, what: str, limit: int) -> str:
        length = self.number("Q", f"length of {what}")
        if length > limit:
            self.fail(f"{what} is {length} bytes long, at most {limit} are allowed")
        self.need(length, what)
        raw = self.data[self.pos : self.pos + length]
        self.pos += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not valid UTF-8")

    def boolean(self) -> bool:
        value = self.number("B", "value")
        if value > 1:
            self.fail(f"boolean has value {value}")
        return bool(value)

    def strings(self, count: int) -> list[str]:
        """A list of strings; one tight loop, as vocabularies have hundreds of thousands."""
        data, end, pos = self.data, self.end, self.pos
        length_at = struct.Struct("<Q").unpack_from
        result: list[str] = []
        append = result.append
        try:
            for _ in range(count):
                (length,) = length_at(data, pos)
                start = pos + 8
                pos = start + length
                if pos > end or length > MAX_ELEMENT_BYTES:
                    self.fail(
                        f"element {len(result)} is {length} bytes long; that is too long, or past the end of file"
                    )
                if pos > self.have:
                    raise IncompleteError
                append(str(data[start:pos], "utf-8"))
        except struct.error:
            if self.have < end:
                raise IncompleteError from None
            self.fail(f"the file ends in element {len(result)} of {count}")
        except UnicodeDecodeError:
            self.fail(f"element {len(result)} is not valid UTF-8")
        self.pos = pos
        return result

    def array(self) -> Callable[[], list[Any]]:
        """Check an array and step over it. Numbers are turned into objects only once the whole header is known to be
        good: a wrong count would otherwise take memory for bytes that are not an array."""
        kind = self.number("I", "array type")
        count = self.number("Q", "array length")
        self.num_elements += count
        if self.num_elements > MAX_ARRAY_ELEMENTS:
            self.fail(f"array of {count} elements; a file may hold {MAX_ARRAY_ELEMENTS} in all")
        if kind == _STRING:
            self.need(8 * count, f"array of {count} strings")
            values = self.strings(count)
            return lambda: values
        if kind == _BOOL:
            self.need(count, f"array of {count} booleans")
            raw = self.data[self.pos : self.pos + count]
            if raw.strip(b"\0\1"):
                self.fail("boolean that is neither 0 nor 1")
            self.pos += count
            return lambda: [bool(x) for x in raw]
        if kind not in _SCALARS:
            self.fail(f"array of type {kind}, which is {'nested' if kind == _ARRAY else 'unknown'}")
        form = struct.Struct(f"<{count}{_SCALARS[kind]}")
        self.need(form.size, f"array of {count} numbers")
        start = self.pos
        self.pos += form.size
        return lambda: list(form.unpack_from(self.data, start))


def _read_metadata(reader: _Reader, count: int) -> tuple[dict[str, Any], dict[str, Callable[[], list[Any]]]]:
    """The metadata, and for each array in it (still None there) the function that makes its list."""
    metadata: dict[str, Any] = {}
    arrays: dict[str, Callable[[], list[Any]]] = {}
    for index in range(count):
        reader.where = f"metadata key {index}"
        key = reader.string("key", MAX_KEY_BYTES)
        if not key:
            reader.fail("is empty")
        reader.where = f"metadata key {key[:80]!r}"
        if key in metadata:
            reader.fail("appears twice")
        kind = reader.number("I", "type")
        if key == "general.alignment" and kind != _UINT32:
            reader.fail(f"has type {kind}, not uint32")
        if kind == _STRING:
            metadata[key] = reader.string("value", MAX_STRING_BYTES)
        elif kind == _BOOL:
            metadata[key] = reader.boolean()
        elif kind == _ARRAY:
            metadata[key] = None
            arrays[key] = reader.array()
        elif kind in _SCALARS:
            metadata[key] = reader.number(_SCALARS[kind], "value")
        else:
            reader.fail(f"has unknown type {kind}")
    return metadata, arrays


def _read_tensor(reader: _Reader, index: int) -> TensorInfo:
    reader.where = f"tensor {index}"
    name = reader.string("name", MAX_NAME_BYTES)
    if not name:
        reader.fail("name is empty")
    reader.where = f"tensor {name!r}"
    num_dims = reader.number("I", "number of dimensions")
    if num_dims > MAX_DIMS:
        reader.fail(f"has {num_dims} dimensions, at most {MAX_DIMS} are allowed")
    dims = tuple(reader.number("Q", "dimension") for _ in range(num_dims))
    if any(not 0 < dim < 2**63 for dim in dims) or prod(dims) >= 2**63:
        reader.fail(f"shape {list(dims)} is not possible")
    kind = reader.number("I", "type")
    if kind not in GGML_TYPES:
        reader.fail(f"has unknown type {kind}")
    form = GGML_TYPES[kind]
    row = dims[0] if dims else 1
    if row % form.block:
        reader.fail(f"row of {row} elements is not a multiple of {form.name}'s block of {form.block}")
    offset = reader.number("Q", "offset")
    return TensorInfo(name, dims[::-1], kind, offset, prod(dims) // form.block * form.nbytes)


def _read_tensors(reader: _Reader, count: int, alignment: int) -> dict[str, TensorInfo]:
    """All tensors, with offsets from the start of the file. They must follow one another in the data section with no
    more than padding between them: then none overlaps another, and a wrong alignment cannot shift the data unseen."""
    found: dict[str, TensorInfo] = {}
    for index in range(count):
        info = _read_tensor(reader, index)
        if info.name in found:
            reader.fail("appears twice")
        found[info.name] = info
    data_start = -(-reader.pos // alignment) * alignment
    expected = 0
    for name, info in found.items():
        reader.where = f"tensor {name!r}"
        if info.offset % alignment:
            reader.fail(f"offset {info.offset} is not a multiple of the alignment {alignment}")
        if info.offset != expected:
            problem = "overlaps the tensor before it" if info.offset < expected else "leaves a hole before it"
            reader.fail(f"offset {info.offset} {problem}; {expected} was expected")
        if data_start + info.offset + info.nbytes > reader.end:
            reader.fail(
                f"its {info.nbytes} bytes at {data_start + info.offset} run past the end of the file "
                f"({reader.end} bytes); the file is truncated or damaged"
            )
        expected = -(-(info.offset + info.nbytes) // alignment) * alignment
        found[name] = TensorInfo(name, info.shape, info.type, data_start + info.offset, info.nbytes)
    if found and reader.end - (data_start + expected) >= alignment:
        reader.where = "data"
        reader.fail(f"{reader.end - (data_start + expected)} bytes at the end of the file belong to no tensor")
    return found


def _parse(reader: _Reader) -> GGUFHeader:
    reader.need(24, "a GGUF header")
    if reader.data[:4] != b"GGUF":
        reader.fail(f"starts with {bytes(reader.data[:4])!r}, not with 'GGUF': not a GGUF file")
    reader.pos = 4
    version = reader.number("I", "version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
        reader.fail("big-endian GGUF is not supported" if swapped else f"GGUF version {version}; 2 and 3 are supported")
    num_tensors = reader.number("Q", "number of tensors")
    num_keys = reader.number("Q", "number of metadata keys")
    if num_keys * _MIN_KV_BYTES + num_tensors * _MIN_TENSOR_BYTES > reader.end - reader.pos:
        reader.fail(f"{num_tensors} tensors and {num_keys} metadata keys do not fit into {reader.end} bytes")
    metadata, arrays = _read_metadata(reader, num_keys)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1):
        reader.where = "metadata key 'general.alignment'"
        reader.fail(f"{alignment} is not a power of two")
    tensors = _read_tensors(reader, num_tensors, alignment)
    for key, values in arrays.items():
        metadata[key] = values()
    return GGUFHeader(version, metadata, tensors, alignment)


_HELD: WeakValueDictionary[tuple[int, ...], GGUFHeader] = WeakValueDictionary()
"""Headers that somebody has at this moment: a large vocabulary takes a third of a second to read. None is changed."""


def read_header(path: Path) -> GGUFHeader:
    """Read and check the header of `path`. Raises ModelFileError for whatever is wrong with the file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(path.name, "not a regular file")
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if (held := _HELD.get(key)) is not None:
            return held
        header = _HELD[key] = read_beginning(path, status.st_size, path.name)
        return header
    except OSError as error:
        raise ModelFileError(path.name, f"cannot be read: {error.strerror or error}") from error


def read_beginning(path: Path, size: int, name: str) -> GGUFHeader:
    """The header of a file of `size` bytes, called `name` in errors, of which `path` holds the beginning so far. Raises
    IncompleteError while the header is not all there, ModelFileError for whatever is wrong with it, OSError."""
    if size < 24:
        raise ModelFileError(name, "too short to be a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _parse(_Reader(data, name, size))
