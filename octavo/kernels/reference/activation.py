"""Gated activations in plain PyTorch. Called by ReferenceOps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(x: Tensor) -> Tensor:
    """[tokens, 2 * n] → [tokens, n]: silu(first half) * second half."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
