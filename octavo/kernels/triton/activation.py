"""silu(gate) * up of a fused gate-up projection. Bound by memory: 6n bytes a token in bf16."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.launch import check_device

_BLOCK = 1024


@triton.jit
def _silu_mul_kernel(x, out, stride, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n
    gate = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * stride + n + columns, mask=inside, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * n + columns, value.to(out.dtype.element_ty), mask=inside)


def silu_mul(x: Tensor) -> Tensor:
    """[tokens, 2 * n] with contiguous rows → [tokens, n]: silu(first half) * second half, in f32, rounded once."""
    check_device(x)
    tokens, n = x.shape[0], x.shape[1] // 2
    assert x.stride(1) == 1
    out = torch.empty((tokens, n), dtype=x.dtype, device=x.device)
    if tokens and n:
        _silu_mul_kernel[(tokens, triton.cdiv(n, _BLOCK))](x, out, x.stride(0), n, BLOCK=_BLOCK, num_warps=4)
    return out
