"""What NVIDIA GPUs of a compute capability can do, as far as the configuration and the kernels both ask. Pure."""

from __future__ import annotations

Capability = tuple[int, int]

LEAST: Capability = (8, 0)
"""Triton makes products for the matrix units of these and later ones; on 7.5 they would run on the plain units, slowly,
with most of their numbers spilled."""
FP8_FROM: Capability = (8, 9)
"""Triton converts from and to e4m3 by the GPU's own instructions, which earlier ones lack."""


def dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def why_not(capability: Capability, kv_cache_dtype: str) -> str | None:
    """Why the Triton kernels cannot serve such a GPU with KV blocks of this type; None: they can."""
    here = f"the GPU has compute capability {dotted(capability)}"
    if capability < LEAST:
        return f"needs compute capability {dotted(LEAST)} for its products, and {here}"
    if kv_cache_dtype == "fp8" and capability < FP8_FROM:
        return f"has a KV cache of fp8 from compute capability {dotted(FP8_FROM)} on, and {here}"
    return None
