"""From the engine's pooled hidden states to the embedding that a caller gets. Pure; numpy is imported when one is asked
for, not with this module."""

from __future__ import annotations

from octavo.types import SamplingParams

EMBEDDING = SamplingParams(max_tokens=0, temperature=0.0)
"""What a request for an embedding runs with."""


def finished(pooled: bytes, dimensions: int | None = None) -> bytes:
    """[n] f32, little-endian → the first `dimensions` of it (all by default), at length 1, in the same form."""
    import numpy as np

    vector = np.frombuffer(pooled, "<f4")[:dimensions].astype(np.float64)
    length = float(np.sqrt(vector @ vector))
    return (vector / length if length > 0 else vector).astype("<f4").tobytes()


def numbers(vector: bytes) -> list[float]:
    """Of an embedding in that form."""
    import numpy as np

    found: list[float] = np.frombuffer(vector, "<f4").tolist()
    return found
