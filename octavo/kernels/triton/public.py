"""Octavo's Triton kernels for use in other programs, as `from octavo.kernels import triton_rmsnorm`. Each takes CUDA
tensors of f32, bf16 or f16, computes in f32 and rounds once; wrong shapes and devices are a ValueError."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.sampling_rows import SamplingRows
from octavo.kernels.triton import activation, norm, sampling
from octavo.kernels.triton.launch import check_device

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def triton_rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last axis: x [..., n], weight [n] → [..., n] of x's dtype.

    Zhang and Sennrich 2019, arXiv:1910.07467. Raises ValueError.
    """
    _check("x", x, FLOATS)
    _check("weight", weight, FLOATS)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; x {tuple(x.shape)} needs ({x.shape[-1]},)")
    return norm.rms_norm(x, weight.contiguous(), eps)


def triton_add_rmsnorm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """residual' = x + residual (None: x alone) → (rmsnorm(residual') of x's dtype, residual').

    x [tokens, n]; residual [tokens, n] f32, contiguous, is overwritten; weight [n]. Raises ValueError.
    """
    _check("x", x, FLOATS)
    _check("weight", weight, FLOATS)
    if x.dim() != 2 or weight.shape != x.shape[-1:]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)}: give [tokens, n] and [n]")
    if residual is not None:
        _check("residual", residual, (torch.float32,))
        if residual.shape != x.shape or not residual.is_contiguous():
            raise ValueError(f"residual {tuple(residual.shape)} must be contiguous and have x's shape {tuple(x.shape)}")
    return norm.add_rms_norm(x.contiguous(), residual, weight.contiguous(), eps)


def triton_silu_mul(x: Tensor) -> Tensor:
    """[tokens, 2 * n] → [tokens, n]: silu(first half) * second half. Raises ValueError."""
    _check("x", x, FLOATS)
    if x.dim() != 2 or x.shape[1] % 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be [tokens, 2 * n]")
    return activation.silu_mul(x.contiguous())


def triton_sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    indices: Tensor,
) -> Tensor:
    """One token id per row of logits [samples, vocab] f32 → [samples] int64; -1 where a logit is not a number.

    temperature, top_p, min_p [samples] f32 (temperature 0 is greedy, top_p 1 and min_p 0 keep all), top_k [samples]
    int64 (<= 0 keeps all). Noise is a pure function of (seeds[i], indices[i], token id), both int64. Raises ValueError.
    """
    _check("logits", logits, (torch.float32,))
    for name, each, dtype in (
        ("temperature", temperature, torch.float32), ("top_k", top_k, torch.int64), ("top_p", top_p, torch.float32),
        ("min_p", min_p, torch.float32), ("seeds", seeds, torch.int64), ("indices", indices, torch.int64),
    ):  # fmt: skip
        _check(name, each, (dtype,))
        if each.shape != logits.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(each.shape)}; {logits.shape[0]} rows need ({logits.shape[0]},)")
    return sampling.sample(logits.contiguous(), SamplingRows(temperature, top_k, top_p, min_p, seeds, indices))


def _check(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in dtypes:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}; it must be {known}")
    check_device(tensor)
