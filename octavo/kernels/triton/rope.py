"""Rotary embedding of q and k, with the RMS norm of their heads before it where a model has one, and the write of k and
v into the pages, in one launch.

A program takes one token and some of its heads, q's, k's or v's. Bound by memory: each element is read once and written
once; the angles of a token come from the cache after the first head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.ops import HeadNorms
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
def _read(source, heads, num_heads, stride, begin, end, WIDTH: tl.constexpr):
    """[heads, WIDTH] f32: features begin .. end, zero beyond."""
    features = begin + tl.arange(0, WIDTH)[None, :]
    inside = (heads < num_heads)[:, None] & (features < end)
    return tl.load(source + heads[:, None] * stride + features, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _write(values, target, heads, num_heads, stride, begin, end, WIDTH: tl.constexpr):
    features = begin + tl.arange(0, WIDTH)[None, :]
    inside = (heads < num_heads)[:, None] & (features < end)
    tl.store(target + heads[:, None] * stride + features, _rounded(values, target), mask=inside)


@triton.jit
def _weights(weight, begin, end, WIDTH: tl.constexpr):
    features = begin + tl.arange(0, WIDTH)
    return tl.load(weight + features, mask=features < end, other=0.0)[None, :]


@triton.jit
def _turn(
    source, weight, target, cos, sin, heads, num_heads, stride, head_dim, half, eps,
    HALF: tl.constexpr, REST: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Some heads, normalized and rotated, the features beyond the rotated ones only normalized."""
    first = _read(source, heads, num_heads, stride, 0, half, HALF)
    second = _read(source, heads, num_heads, stride, half, 2 * half, HALF)
    if REST > 0:
        rest = _read(source, heads, num_heads, stride, 2 * half, head_dim, REST)
    if NORM:
        squares = tl.sum(first * first + second * second, axis=1)
        if REST > 0:
            squares += tl.sum(rest * rest, axis=1)
        scale = tl.rsqrt(squares / head_dim + eps)[:, None]
        first *= scale * _weights(weight, 0, half, HALF)
        second *= scale * _weights(weight, half, 2 * half, HALF)
        if REST > 0:
            rest *= scale * _weights(weight, 2 * half, head_dim, REST)
    _write(first * cos - second * sin, target, heads, num_heads, head_dim, 0, half, HALF)
    _write(second * cos + first * sin, target, heads, num_heads, head_dim, half, 2 * half, HALF)
    if REST > 0:
        _write(rest, target, heads, num_heads, head_dim, 2 * half, head_dim, REST)


@triton.jit
def _rope_cache_kernel(
    q, k, v, cos_sin, positions, slots, q_norm, k_norm, q_out, k_pages, v_pages,
    q_stride, k_stride, v_stride, q_head, k_head, v_head, num_heads, num_kv_heads, head_dim, half, table_stride, eps,
    HALF: tl.constexpr, REST: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    q_parts = tl.cdiv(num_heads, HEADS)
    kv_parts = tl.cdiv(num_kv_heads, HEADS)
    page_row = tl.load(slots + token) * num_kv_heads * head_dim
    if part >= q_parts + kv_parts:
        heads = (part - q_parts - kv_parts) * HEADS + tl.arange(0, HEADS)
        values = _read(v + token * v_stride, heads, num_kv_heads, v_head, 0, head_dim, WIDTH)
        _write(values, v_pages + page_row, heads, num_kv_heads, head_dim, 0, head_dim, WIDTH)
    else:
        features = tl.arange(0, HALF)
        angles = cos_sin + tl.load(positions + token) * table_stride + features
        cos = tl.load(angles, mask=features < half, other=0.0)[None, :]
        sin = tl.load(angles + half, mask=features < half, other=0.0)[None, :]
        if part < q_parts:
            heads = part * HEADS + tl.arange(0, HEADS)
            _turn(
                q + token * q_stride, q_norm, q_out + token * num_heads * head_dim, cos, sin, heads, num_heads,
                q_head, head_dim, half, eps, HALF, REST, NORM,
            )  # fmt: skip
        else:
            heads = (part - q_parts) * HEADS + tl.arange(0, HEADS)
            _turn(
                k + token * k_stride, k_norm, k_pages + page_row, cos, sin, heads, num_kv_heads,
                k_head, head_dim, half, eps, HALF, REST, NORM,
            )  # fmt: skip


def rope_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    kv: Tensor,
    positions: Tensor,
    slots: Tensor,
    norms: HeadNorms | None = None,
) -> Tensor:
    """Rotates q and k by their positions, each head normalized first where there are norms, and writes k, v into the
    pages; → rotated q, contiguous.

    q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim] with contiguous features (views of one fused
    projection); cos_sin [max_positions, rotary_dim] f32, cosines then sines, halves convention; kv [2, blocks,
    block_size, kv_heads, head_dim], contiguous, of any float type; positions and slots [tokens] int64.
    """
    check_device(q, k, v, cos_sin, kv, positions, slots)
    tokens, num_heads, head_dim = q.shape
    num_kv_heads, rotary = k.shape[1], cos_sin.shape[1]
    assert q.stride(2) == k.stride(2) == v.stride(2) == 1 and kv.is_contiguous() and cos_sin.stride(1) == 1
    out = torch.empty((tokens, num_heads, head_dim), dtype=q.dtype, device=q.device)
    # Never read without norms; a launch wants a pointer.
    q_norm, k_norm = (norms.q, norms.k) if norms else (cos_sin, cos_sin)
    check_device(q, q_norm, k_norm)
    rest, half = head_dim - rotary, next_power_of_2(rotary // 2)
    parts = triton.cdiv(num_heads, _HEADS) + 2 * triton.cdiv(num_kv_heads, _HEADS)
    if tokens:
        _rope_cache_kernel[(tokens, parts)](
            q, k, v, cos_sin, positions, slots, q_norm, k_norm, out, kv[0], kv[1],
            q.stride(0), k.stride(0), v.stride(0), q.stride(1), k.stride(1), v.stride(1),
            num_heads, num_kv_heads, head_dim, rotary // 2, cos_sin.stride(0), norms.eps if norms else 0.0,
            HALF=half, REST=next_power_of_2(rest) if rest else 0,
            WIDTH=next_power_of_2(head_dim), HEADS=_HEADS, NORM=norms is not None,
            num_warps=max(_HEADS * half // 256, 1),  # 8 elements of each half a thread: 16 bytes
        )  # fmt: skip
    return out
