"""Matrix products in plain PyTorch (oneDNN on the CPU). Called by ReferenceOps.

Invariant: in bf16 a row of the result does not depend on how many rows are multiplied with it (tests/ops check it).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.layouts import Dense, Layout


def prepare(weight: Layout, dtype: torch.dtype, device: torch.device) -> Dense:
    """Dense in the engine's dtype, whatever the file held."""
    if isinstance(weight, Dense) and weight.data.dtype == dtype and weight.data.device == device:
        return weight
    return Dense(weight.dequantize(dtype).to(device).contiguous())


def linear(x: Tensor, weight: Layout, bias: Tensor | None) -> Tensor:
    """[tokens, in], [out, in] → [tokens, out]."""
    assert isinstance(weight, Dense), f"{type(weight).__name__} was not prepared for the reference backend"
    return F.linear(x, weight.data, bias)
