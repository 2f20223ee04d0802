"""Which of the workers that share one model this is, and where it computes: known from the executor down to the
kernels."""

from __future__ import annotations

import msgspec


class Rank(msgspec.Struct, frozen=True, array_like=True):
    index: int
    """From 0; the worker of index 0 speaks for all in the log."""
    size: int
    """Workers that share the model."""
    device: str
    """cpu or cuda:N, as in ResolvedConfig."""

    @classmethod
    def alone(cls, device: str) -> Rank:
        return cls(0, 1, device)
