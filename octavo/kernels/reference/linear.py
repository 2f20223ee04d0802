"""Matrix products in plain PyTorch (oneDNN on the CPU). Called by ReferenceOps.

Invariant: a row of the result does not depend on what it is multiplied with (tests/ops check it). Libraries take
other paths, which round in another order, for very few rows: such products are padded.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.layouts import Dense, Layout

F32_MULTIPLE = 8
F32_PADDED_BELOW = 128


def prepare(weight: Layout, dtype: torch.dtype, device: torch.device) -> Dense:
    """Dense in the engine's dtype, whatever the file held."""
    if isinstance(weight, Dense) and weight.data.dtype == dtype and weight.data.device == device:
        return weight
    return Dense(weight.dequantize(dtype).to(device).contiguous())


def linear(x: Tensor, weight: Layout, bias: Tensor | None) -> Tensor:
    """[tokens, in], [out, in] → [tokens, out]."""
    assert isinstance(weight, Dense), f"{type(weight).__name__} was not prepared for the reference backend"
    num_rows = x.shape[0]
    if x.dtype == torch.float32:
        if num_rows < F32_PADDED_BELOW and num_rows % F32_MULTIPLE:
            x = F.pad(x, (0, 0, 0, -num_rows % F32_MULTIPLE))
    elif num_rows == 1:
        x = x.expand(2, -1)
    return F.linear(x, weight.data, bias)[:num_rows]
