"""RMS norm in plain PyTorch. Called by ReferenceOps. Invariant: computed in f32, rounded once to x's dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last axis. x [tokens, n], weight [n] of any float dtype."""
    return F.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """residual' = x + residual → (rms_norm(residual') in x's dtype, residual'); residual, f32, is overwritten."""
    assert residual is None or residual.dtype == torch.float32
    residual = x.float() if residual is None else residual.add_(x)
    return rms_norm(residual, weight, eps).to(x.dtype), residual
