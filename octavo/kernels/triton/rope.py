"""Rotary embedding of q and k with the write of k and v into the pages, in one launch.

A program takes one token and some of its heads, q's, k's or v's. Bound by memory: each element is read once and written
once; the angles of a token come from the cache after the first head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.launch import check_device, next_power_of_2

_HEADS = 8
"""Heads of one program: with 128 features 1,024 elements."""


@triton.jit
def _rounded(x, target):
    """In the type of the pages; e4m3 has no infinity, what is too large becomes the largest."""
    if target.dtype.element_ty == tl.float8e4nv:
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
    return x.to(target.dtype.element_ty)


@triton.jit
def _turned(source, heads, cos, sin, num_heads, head_stride, half, HALF: tl.constexpr):
    """[heads, HALF] twice: the first and second half of the rotated features."""
    features = tl.arange(0, HALF)[None, :]
    inside = (heads < num_heads)[:, None] & (features < half)
    at = source + heads[:, None] * head_stride + features
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=inside, other=0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin, inside


@triton.jit
def _copy(source, target, heads, num_heads, source_stride, target_stride, begin, end, WIDTH: tl.constexpr):
    """Features begin .. end of some heads as they are."""
    features = begin + tl.arange(0, WIDTH)[None, :]
    inside = (heads < num_heads)[:, None] & (features < end)
    values = tl.load(source + heads[:, None] * source_stride + features, mask=inside, other=0.0)
    at = target + heads[:, None] * target_stride + features
    tl.store(at, _rounded(values.to(tl.float32), target), mask=inside)


@triton.jit
def _rope_cache_kernel(
    q, k, v, cos_sin, positions, slots, q_out, k_pages, v_pages,
    q_stride, k_stride, v_stride, q_head, k_head, v_head, num_heads, num_kv_heads, head_dim, half, table_stride,
    HALF: tl.constexpr, REST: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    q_parts = tl.cdiv(num_heads, HEADS)
    kv_parts = tl.cdiv(num_kv_heads, HEADS)
    page_row = tl.load(slots + token) * num_kv_heads * head_dim
    if part >= q_parts + kv_parts:
        heads = (part - q_parts - kv_parts) * HEADS + tl.arange(0, HEADS)
        _copy(v + token * v_stride, v_pages + page_row, heads, num_kv_heads, v_head, head_dim, 0, head_dim, WIDTH)
    else:
        features = tl.arange(0, HALF)
        angles = cos_sin + tl.load(positions + token) * table_stride + features
        cos = tl.load(angles, mask=features < half, other=0.0)[None, :]
        sin = tl.load(angles + half, mask=features < half, other=0.0)[None, :]
        if part < q_parts:
            heads = part * HEADS + tl.arange(0, HEADS)
            source = q + token * q_stride
            first, second, inside = _turned(source, heads, cos, sin, num_heads, q_head, half, HALF)
            target = q_out + token * num_heads * head_dim
            at = target + heads[:, None] * head_dim + features[None, :]
            tl.store(at, first.to(q_out.dtype.element_ty), mask=inside)
            tl.store(at + half, second.to(q_out.dtype.element_ty), mask=inside)
            if REST > 0:
                _copy(source, target, heads, num_heads, q_head, head_dim, 2 * half, head_dim, REST)
        else:
            heads = (part - q_parts) * HEADS + tl.arange(0, HEADS)
            source = k + token * k_stride
            first, second, inside = _turned(source, heads, cos, sin, num_kv_heads, k_head, half, HALF)
            # Names of its own: where both branches bind one, its types must agree, and pages may be of another.
            page = k_pages + page_row
            place = page + heads[:, None] * head_dim + features[None, :]
            tl.store(place, _rounded(first, k_pages), mask=inside)
            tl.store(place + half, _rounded(second, k_pages), mask=inside)
            if REST > 0:
                _copy(source, page, heads, num_kv_heads, k_head, head_dim, 2 * half, head_dim, REST)


def rope_cache(
    q: Tensor, k: Tensor, v: Tensor, cos_sin: Tensor, kv: Tensor, positions: Tensor, slots: Tensor
) -> Tensor:
    """Rotates q and k by their positions and writes k, v into the pages; → rotated q, contiguous.

    q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim] with contiguous features (views of one fused
    projection); cos_sin [max_positions, rotary_dim] f32, cosines then sines, halves convention; kv [2, blocks,
    block_size, kv_heads, head_dim], contiguous, of any float type; positions and slots [tokens] int64.
    """
    check_device(q, k, v, cos_sin, kv, positions, slots)
    tokens, num_heads, head_dim = q.shape
    num_kv_heads, rotary = k.shape[1], cos_sin.shape[1]
    assert q.stride(2) == k.stride(2) == v.stride(2) == 1 and kv.is_contiguous() and cos_sin.stride(1) == 1
    out = torch.empty((tokens, num_heads, head_dim), dtype=q.dtype, device=q.device)
    rest, half = head_dim - rotary, next_power_of_2(rotary // 2)
    parts = triton.cdiv(num_heads, _HEADS) + 2 * triton.cdiv(num_kv_heads, _HEADS)
    if tokens:
        _rope_cache_kernel[(tokens, parts)](
            q, k, v, cos_sin, positions, slots, out, kv[0], kv[1],
            q.stride(0), k.stride(0), v.stride(0), q.stride(1), k.stride(1), v.stride(1),
            num_heads, num_kv_heads, head_dim, rotary // 2, cos_sin.stride(0),
            HALF=half, REST=next_power_of_2(rest) if rest else 0,
            WIDTH=next_power_of_2(head_dim), HEADS=_HEADS,
            num_warps=max(_HEADS * half // 256, 1),  # 8 elements of each half a thread: 16 bytes
        )  # fmt: skip
    return out
