"""Maps a .gguf file for a checkpoint."""

from __future__ import annotations

from pathlib import Path

from octavo.errors import ModelFileError
from octavo.modelfiles.gguf import GGML_TYPES, read_header
from octavo.weights.mapping import MappedFile
from octavo.weights.stored import StoredTensor


def map_gguf(path: Path) -> dict[str, StoredTensor]:
    """Names are GGUF's own (blk.0.attn_q.weight, …), shapes in torch order."""
    header = read_header(path)
    if not header.tensors:
        raise ModelFileError(path.name, "holds no tensors, only metadata")
    file = MappedFile(path)
    return {
        name: StoredTensor(file, GGML_TYPES[info.type].name, info.shape, info.offset, info.nbytes)
        for name, info in header.tensors.items()
    }
