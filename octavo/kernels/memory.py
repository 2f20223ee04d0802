"""Large buffers on the host: zero pages that take no physical memory until they are written. Used for KV pages and for
the workspace of a recorded step."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor


def zero_pages(nbytes: int) -> Tensor:
    """[nbytes] uint8, page-aligned, private to this process, in huge pages where the system has them: a first touch
    then costs one fault instead of hundreds, and reading fewer address translations."""
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
