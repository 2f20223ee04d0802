"""RMS norm, with and without the residual before it. One program normalizes one row; the row is read once.

Bound by memory: a row of n elements moves 4n bytes in bf16, 12n with the f32 residual.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.launch import check_device, next_power_of_2, warps_for


@triton.jit
def _rms_norm_kernel(x, weight, out, stride, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values) / n + eps)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + columns, (values * scale * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_rms_norm_kernel(x, residual, weight, out, stride, n, eps, BLOCK: tl.constexpr, FIRST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    values = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    if not FIRST:
        values += tl.load(residual + row * n + columns, mask=inside, other=0.0)
    tl.store(residual + row * n + columns, values, mask=inside)
    scale = tl.rsqrt(tl.sum(values * values) / n + eps)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + columns, (values * scale * factor).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last axis, in f32, rounded to x's dtype. x [..., n] with contiguous
    rows, weight [n]."""
    check_device(x, weight)
    n = x.shape[-1]
    rows = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, n)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = next_power_of_2(n)
    if rows.shape[0]:
        _rms_norm_kernel[(rows.shape[0],)](
            rows, weight, out, rows.stride(0), n, eps, BLOCK=block, num_warps=warps_for(block)
        )
    return out


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """residual' = x + residual (None: x alone) → (rms_norm(residual') in x's dtype, residual'). x [tokens, n] with
    contiguous rows; residual [tokens, n] f32, contiguous, is overwritten."""
    tokens, n = x.shape
    first = residual is None
    kept = torch.empty((tokens, n), dtype=torch.float32, device=x.device) if residual is None else residual
    check_device(x, kept, weight)
    assert kept.dtype == torch.float32 and kept.is_contiguous()
    out = torch.empty((tokens, n), dtype=x.dtype, device=x.device)
    block = next_power_of_2(n)
    if tokens:
        _add_rms_norm_kernel[(tokens,)](
            x, kept, weight, out, x.stride(0), n, eps, BLOCK=block, FIRST=first, num_warps=warps_for(block)
        )
    return out, kept
