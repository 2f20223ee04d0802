"""Maps a folder's safetensors, one file or shards with an index, for a checkpoint."""

from __future__ import annotations

from pathlib import Path

from octavo.modelfiles.safetensors import find_tensors
from octavo.weights.mapping import MappedFile
from octavo.weights.stored import StoredTensor


def map_safetensors(folder: Path) -> dict[str, StoredTensor]:
    """Names are those of the files. All headers are read now; raises ModelFileError for whatever is wrong with them."""
    shards = find_tensors(folder)
    tensors: dict[str, StoredTensor] = {}
    for path, header in shards.items():
        file = MappedFile(path)
        for name, info in header.tensors.items():
            tensors[name] = StoredTensor(file, info.dtype, info.shape, info.offset, info.nbytes)
    return tensors
