"""Large buffers on the host, for KV pages and for the workspace of a recorded step."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

AT_ONCE = 512 << 20
"""Bytes that get their physical memory now. What is beyond gets it when it is first written, and a step waits for that:
on a virtual machine a gigabyte of memory never used before can take a second."""

_POPULATE_WRITE = 23  # Linux 5.14 and later; Python's mmap does not name it


def zero_pages(nbytes: int) -> Tensor:
    """[nbytes] uint8 zeros, page-aligned, private to this process, in huge pages where the system has them: fewer
    faults and fewer address translations."""
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # wishes: a kernel may be too old for either
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory.madvise(_POPULATE_WRITE, 0, min(nbytes, AT_ONCE))
    return torch.frombuffer(memory, dtype=torch.uint8)
