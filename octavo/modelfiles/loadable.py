"""Which types of stored numbers can be loaded as weights, known from a file's header alone."""

from __future__ import annotations

from octavo.errors import ModelFileError
from octavo.modelfiles import gguf, safetensors
from octavo.modelfiles.files import ModelFiles

TYPES = (
    *("F32", "F16", "BF16", "F64", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
)
"""Of GGUF; safetensors have the floats. weights/formats reads them."""


def check_types(files: ModelFiles) -> None:
    """Raises ModelFileError that names a tensor of a type that cannot be loaded."""
    if files.is_gguf:
        check_header(gguf.read_header(files.path), files.path.name)
        return
    for path, header in safetensors.find_tensors(files.path).items():
        for tensor in header.tensors.values():
            _check(path.name, tensor.name, tensor.dtype)


def check_header(header: gguf.GGUFHeader, file: str) -> None:
    for tensor in header.tensors.values():
        _check(file, tensor.name, gguf.GGML_TYPES[tensor.type].name)


def _check(file: str, tensor: str, kind: str) -> None:
    if kind not in TYPES:
        raise ModelFileError(
            file, f"tensor {tensor[:80]!r}: type {kind} is not supported as weights; {', '.join(TYPES)} are"
        )
