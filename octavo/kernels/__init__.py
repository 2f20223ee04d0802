"""Operations, backends and their choice. The Triton kernels that are useful by themselves are importable from here;
Triton is imported when one of them is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["triton_add_rmsnorm", "triton_rmsnorm", "triton_sample", "triton_silu_mul"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("octavo.kernels.triton.public"), name)
