"""What the kernel check and the inspection of compiled code are about: one operation at one size of one model. The
lists of cases stand in rows.py, attend.py, products.py, mixture.py and draws.py; kernels.py runs them, compiled.py only
records what they launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from sizes import MODELS, TINY, Model
from torch import Tensor

from octavo.kernels.triton.launch import INTERPRETED

__all__ = ["BF16", "F32", "MODELS", "TINY", "Call", "Case", "Model", "normal", "relative"]

BF16, F32 = torch.float16 if INTERPRETED else torch.bfloat16, torch.float32
"""The interpreter has no products of bf16, so it gets f16."""


@dataclass(frozen=True)
class Call:
    """One set of arguments, on a device. Results are thrown away; `error` compares a fresh one with PyTorch in f32:
    a relative error, or the share of rows that differ."""

    ours: Callable[[], object]
    eager: Callable[[], object]
    error: Callable[[], float]
    peer: Callable[[], object] | None = None
    """FlashInfer's, where it is installed and has this operation."""


@dataclass(frozen=True)
class Case:
    kernel: str
    model: str
    rows: int
    nbytes: int
    """What must be moved at least: each input read once, each output written once."""
    make: Callable[[torch.device], Call]
    operations: int = 0
    """Of the matrix units."""
    context: int | None = None
    what: str = ""
    """Matrix, form of the weight, kind of draw."""
    tolerance: float = 1e-2
    goal: str | None = None
    """The figure that is asked of this size, in words."""
    priority: int = 1
    """0 is timed first, 2 when time is left."""
    bound: str = field(default="copy")
    """The rate it is held against: copy or matmul."""

    @property
    def name(self) -> str:
        context = f" context {self.context}" if self.context else ""
        return f"{self.kernel} {self.what + ' ' if self.what else ''}{self.model} rows {self.rows}{context}"


def relative(found: Tensor, exact: Tensor) -> float:
    """‖found - exact‖ / ‖exact‖; not-a-number where either is not."""
    return float((found.float() - exact.float()).norm() / exact.float().norm().clamp_min(1e-30))


def normal(*shape: int, device: torch.device, dtype: torch.dtype = BF16) -> Tensor:
    """Random, never zeros: they would hide what is not written, and run faster."""
    return torch.randn(shape, device=device, dtype=dtype)
