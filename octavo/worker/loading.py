"""Which weights a worker loads, and where they go."""

from __future__ import annotations

from octavo.config.resolve import ResolvedConfig
from octavo.kernels.layouts import DTYPES
from octavo.kernels.ops import Ops
from octavo.modelfiles.files import ModelFiles
from octavo.rank import Rank
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.progress import LoadingLog
from octavo.weights.random import RandomCheckpoint
from octavo.worker.device import Device


def open_weights(
    resolved: ResolvedConfig, files: ModelFiles, ops: Ops, rank: Rank, device: Device | None = None
) -> Checkpoint:
    """To be read from the thread that works with `device`. Raises ModelFileError."""
    dtype = DTYPES[resolved.dtype]
    if resolved.load_format == "dummy":
        return RandomCheckpoint(files.name, ops.device, dtype)
    return open_checkpoint(files, device, dtype, LoadingLog() if rank.index == 0 else None)
