"""Rotary embedding and the write of K and V into the pages, in plain PyTorch. Called by ReferenceOps."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_cos_sin(cos_sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """[max_positions, rotary_dim] → cosines twice, and sines with the first half negated, [tokens, 1, rotary_dim]."""
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [tokens, heads, head_dim] turned by angle in its first rotary_dim features, halves convention, in f32."""
    rotary_dim = cos.shape[-1]
    turned = x[..., :rotary_dim].float()
    first, second = turned.chunk(2, dim=-1)
    turned = torch.addcmul(turned * cos, torch.cat((second, first), dim=-1), sin).to(x.dtype)
    return turned if rotary_dim == x.shape[-1] else torch.cat((turned, x[..., rotary_dim:]), dim=-1)


def write_pages(k: Tensor, v: Tensor, kv: Tensor, slots: Tensor) -> None:
    """k, v [tokens, kv_heads, head_dim] into kv [2, blocks, block_size, kv_heads, head_dim] at `slots` [tokens]."""
    flat = kv.view(2, -1, kv.shape[3], kv.shape[4])
    flat[0].index_copy_(0, slots, k)
    flat[1].index_copy_(0, slots, v)
