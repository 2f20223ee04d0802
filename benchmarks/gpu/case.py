"""What the kernel check and the inspection of compiled code are about: one operation at one size of one model. The
lists of cases stand in rows.py, attend.py, products.py, mixture.py and draws.py; kernels.py runs them, compiled.py only
records what they launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.kernels.triton.launch import INTERPRETED

BF16, F32 = torch.float16 if INTERPRETED else torch.bfloat16, torch.float32
"""The interpreter has no products of bf16, so it gets f16."""


@dataclass(frozen=True)
class Model:
    """A model's sizes. `experts`, `per_token`: of a mixture; `inner` is then one expert's."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    experts: int = 0
    per_token: int = 0

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """[out, in] of a layer's fused products; of a mixture the experts' are not among them."""
        both = {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
        }
        dense = {"gate-up": (2 * self.inner, self.hidden), "down": (self.hidden, self.inner)}
        return both if self.experts else {**both, **dense}


MODELS = [
    Model("Llama-3.2-1B", 2048, 32, 8, 64, 8192, 128256),
    Model("Llama-3.1-8B", 4096, 32, 8, 128, 14336, 128256),
    Model("Qwen3-0.6B", 1024, 16, 8, 128, 3072, 151936),
    Model("Qwen3-30B-A3B", 2048, 32, 4, 128, 768, 151936, experts=128, per_token=8),
]
TINY = [
    Model("tiny", 64, 4, 2, 16, 96, 300),
    Model("tiny-mixture", 64, 4, 1, 32, 32, 200, experts=4, per_token=2),
]
"""For the interpreter: they test the scripts, not the kernels."""


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
