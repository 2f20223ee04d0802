"""One model file, memory-mapped for reading. Owned by a checkpoint.

Invariant: no tensor points into the mapping. Bytes are copied out in pieces and the pages of each piece are given back
at once, so a load never holds more of the file in memory than one piece, however large the file is.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from torch import Tensor

from octavo.errors import ModelFileError

PIECE_BYTES = 4 << 20
HUGE_PAGE = 2 << 20
"""Divisible by every page size; the page cache of a file just written may hold pages of this size."""


class MappedFile:
    """Raises ModelFileError when the file cannot be opened or is shorter than its header said."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelFileError(path.name, f"cannot be mapped: {error}") from error

    def read_into(self, out: Tensor, offset: int) -> None:
        """Fill `out` ([n] uint8, contiguous, on the CPU) with the bytes from `offset` on."""
        count = out.numel()
        if offset + count > len(self._map):
            raise ModelFileError(self.name, f"ends before byte {offset + count}; it changed while it was read")
        with out.numpy().data as target, memoryview(self._map) as data:
            for start in range(0, count, PIECE_BYTES):
                end = min(start + PIECE_BYTES, count)
                target[start:end] = data[offset + start : offset + end]
                self._release(offset + start, offset + end)

    def _release(self, start: int, end: int) -> None:
        """Whole huge pages, as the kernel may have mapped them: nothing points into the mapping, so neighbours that
        are read later are only mapped again."""
        first, last = start - start % HUGE_PAGE, min(end + -end % HUGE_PAGE, len(self._map))
        if hasattr(mmap, "MADV_DONTNEED"):  # not on every platform; without it the pages stay until close
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)

    def close(self) -> None:
        self._map.close()
