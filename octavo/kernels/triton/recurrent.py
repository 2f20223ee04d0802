"""Layers whose rows have a state of fixed size: causal depthwise convolution and the gated delta rule.

The delta rule goes token after token with the state in registers, decode and prefill alike, so that a token's bits do
not depend on how its sequence was cut: one program holds some columns of one head's state, which depend on no others.
Decode is bound by memory, 8 * dk * dv bytes a head; prefill by the latency of a token, as no two are computed at once.

Grids depend on counts that the host knows, never on a tensor's contents, so a launch can be captured in a graph. The
padding row of a captured batch writes a state that is nobody's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.step import Step
from octavo.kernels.triton.launch import check_device, next_power_of_2

_CHANNELS, _TOKENS = 128, 16  # of a program of the convolution
_COLUMNS = 8  # of v: a warp holds them for all features of k, so that sums stay inside it


@triton.jit(do_not_specialize=["stride"])
def _short_conv_kernel(
    x, weight, state, out, query_start, context_lens, rows, stride, channels, TAPS: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, tile, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(query_start + row).to(tl.int64)
    tokens = (tl.load(query_start + row + 1) - start).to(tl.int32)
    if tile * TOKENS >= tokens:
        return
    channel = block * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    at = tile * TOKENS + tl.arange(0, TOKENS)
    before = state + tl.load(rows + row).to(tl.int64) * (TAPS - 1) * channels
    continued = tl.load(context_lens + row) > tokens
    sums = tl.zeros([TOKENS, BLOCK], tl.float32)
    for tap in tl.static_range(TAPS):
        source = at - (TAPS - 1) + tap  # below 0: before the run
        new = (source >= 0) & (source < tokens)
        old = (source < 0) & continued
        value = tl.load(
            x + (start + source)[:, None] * stride + channel[None, :], mask=new[:, None] & inside[None, :], other=0.0
        ).to(tl.float32)
        value += tl.load(
            before + (source + TAPS - 1)[:, None] * channels + channel[None, :], mask=old[:, None] & inside[None, :],
            other=0.0,
        )  # fmt: skip
        sums += value * tl.load(weight + tap * channels + channel, mask=inside, other=0.0)[None, :]
    found = sums / (1.0 + tl.exp(-sums))
    tl.store(
        out + (start + at)[:, None] * channels + channel[None, :], found.to(out.dtype.element_ty),
        mask=(at < tokens)[:, None] & inside[None, :],
    )  # fmt: skip
    if tile == 0:  # alone reads what came before, and writes it when all of the program has read
        tl.debug_barrier()
        for place in tl.static_range(TAPS - 1):
            last = tokens - (TAPS - 1) + place
            column = tl.load(x + (start + last) * stride + channel, mask=inside & (last >= 0), other=0.0).to(tl.float32)
            older = inside & (last < 0) & continued
            column += tl.load(before + (last + TAPS - 1) * channels + channel, mask=older, other=0.0)
            tl.store(before + place * channels + channel, column, mask=inside)


@triton.jit(do_not_specialize=["q_stride", "k_stride", "v_stride", "g_stride", "beta_stride"])
def _delta_rule_kernel(
    q, k, v, g, beta, state, out, query_start, context_lens, rows, q_stride, k_stride, v_stride, g_stride, beta_stride,
    scale, K_HEADS: tl.constexpr, V_HEADS: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(query_start + row).to(tl.int64)
    tokens = (tl.load(query_start + row + 1) - start).to(tl.int32)
    features, columns = tl.arange(0, WIDTH), block * BLOCK + tl.arange(0, BLOCK)
    of_head = (tl.load(rows + row).to(tl.int64) * V_HEADS + head) * DK
    places = state + (of_head + features)[:, None] * DV + columns[None, :]
    shown = (features < DK)[:, None] & (columns < DV)[None, :]
    kept = tl.load(places, mask=shown & (tl.load(context_lens + row) > tokens), other=0.0)
    key_at = head // (V_HEADS // K_HEADS) * DK + features
    value_at = head * DV + columns
    for place in range(tokens):
        token = start + place
        q_at = tl.load(q + token * q_stride + key_at, mask=features < DK, other=0.0).to(tl.float32)
        k_at = tl.load(k + token * k_stride + key_at, mask=features < DK, other=0.0).to(tl.float32)
        v_at = tl.load(v + token * v_stride + value_at, mask=columns < DV, other=0.0).to(tl.float32)
        kept *= tl.exp(tl.load(g + token * g_stride + head).to(tl.float32))
        known = tl.sum(kept * k_at[:, None], 0)
        delta = (v_at - known) * tl.load(beta + token * beta_stride + head).to(tl.float32)
        kept += k_at[:, None] * delta[None, :]
        found = tl.sum(kept * q_at[:, None], 0) * scale
        tl.store(
            out + token * (V_HEADS * DV) + value_at, found.to(out.dtype.element_ty), mask=columns < DV
        )  # fmt: skip
    tl.store(places, kept, mask=shown)


def short_conv(x: Tensor, weight: Tensor, state: Tensor, step: Step) -> Tensor:
    """See Ops.short_conv: x [tokens, channels] with contiguous rows, weight [k, channels], k at most 17."""
    check_device(x, weight, state, step.rows)
    (taps, channels), rows = weight.shape, step.num_rows
    assert x.stride(1) == 1 and weight.is_contiguous() and state.is_contiguous() and taps <= _TOKENS + 1
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tokens = 1 if step.max_query_len == 1 else _TOKENS
    if rows:
        grid = rows, triton.cdiv(step.max_query_len, tokens), triton.cdiv(channels, _CHANNELS)
        _short_conv_kernel[grid](
            x, weight, state, out, step.query_start, step.context_lens, step.rows, x.stride(0), channels, TAPS=taps,
            TOKENS=tokens, BLOCK=_CHANNELS, num_warps=1 if tokens == 1 else 4,
        )  # fmt: skip
    return out


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, step: Step) -> Tensor:
    """See Ops.delta_rule: heads of a token contiguous, tokens any distance apart."""
    check_device(q, k, v, g, beta, state, step.rows)
    (_, k_heads, dk), (_, v_heads, dv), rows = q.shape, v.shape, step.num_rows
    assert all(x.stride(-1) == 1 for x in (q, k, v, g, beta)) and state.is_contiguous()
    assert q.stride(1) == k.stride(1) == dk and v.stride(1) == dv
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if rows:
        _delta_rule_kernel[rows, v_heads, triton.cdiv(dv, _COLUMNS)](
            q, k, v, g, beta, state, out, step.query_start, step.context_lens, step.rows, q.stride(0), k.stride(0),
            v.stride(0), g.stride(0), beta.stride(0), dk**-0.5, K_HEADS=k_heads, V_HEADS=v_heads, DK=dk, DV=dv,
            WIDTH=next_power_of_2(dk), BLOCK=_COLUMNS, num_warps=1,
        )  # fmt: skip
    return out
