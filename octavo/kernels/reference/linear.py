"""Matrix products in plain PyTorch (oneDNN on the CPU). Called by ReferenceOps.

Invariant: a row of the result does not depend on what it is multiplied with (tests/ops check it). Libraries take
other paths, which round in another order, for very few rows: such products are padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.layouts import Dense, Layout, Prepared, same_form

BF16_MULTIPLE = 16
"""Above this, products have one of few heights: oneDNN compiles and keeps a kernel for each that it meets."""

F32_MULTIPLE = 8
F32_PADDED_BELOW = 128


def prepare(parts: Sequence[Layout], dtype: torch.dtype, device: torch.device) -> Dense:
    """Dense in the engine's dtype, whatever the file held."""
    if same_form(parts):
        return _dense(parts[0].fuse(parts[1:]) if len(parts) > 1 else parts[0], dtype, device)
    return Dense(torch.cat([_dense(part, dtype, device).data for part in parts]))


def _dense(weight: Layout, dtype: torch.dtype, device: torch.device) -> Dense:
    if isinstance(weight, Dense) and weight.data.dtype == dtype and weight.data.device == device:
        return weight
    return Dense(weight.dequantize(dtype).to(device).contiguous())


def _padded(x: Tensor) -> Tensor:
    """x with enough rows that libraries take the path of many rows."""
    if x.dtype == torch.float32:
        few = x.shape[0] < F32_PADDED_BELOW and x.shape[0] % F32_MULTIPLE
        return F.pad(x, (0, 0, 0, -x.shape[0] % F32_MULTIPLE)) if few else x
    if x.shape[0] == 1:
        return x.expand(2, -1)
    return F.pad(x, (0, 0, 0, -x.shape[0] % BF16_MULTIPLE)) if x.shape[0] > BF16_MULTIPLE else x


def linear(x: Tensor, weight: Prepared, bias: Tensor | None) -> Tensor:
    """[tokens, in], [out, in] → [tokens, out]."""
    assert isinstance(weight, Dense), f"{type(weight).__name__} was not prepared for the reference backend"
    return F.linear(_padded(x), weight.data, bias)[: x.shape[0]]


def logits(x: Tensor, weight: Prepared) -> Tensor:
    """[samples, hidden], [vocab, hidden] → [samples, vocab] f32.

    PyTorch rounds a bf16 product to bf16. What the rounding took is the same product less its rounded self, which
    oneDNN subtracts before it rounds: a second product brings the rest, 16 bits in all, for less than an
    f32 product costs and without a copy of the weight.
    """
    assert isinstance(weight, Dense), f"{type(weight).__name__} was not prepared for the reference backend"
    padded = _padded(x)
    rounded = F.linear(padded, weight.data)
    if x.dtype == torch.float32:
        return rounded[: x.shape[0]]
    rest = torch.addmm(rounded, padded, weight.data.t(), beta=-1)
    return rounded[: x.shape[0]].float().add_(rest[: x.shape[0]])
