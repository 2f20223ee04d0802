"""Changes to logits before a draw: the mask of a grammar and the penalties. In place; bound by memory."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.launch import check_device

_BLOCK = 4096


@triton.jit
def _mask_kernel(logits, places, allowed, vocab, stride, words, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(places + row)
    if place < 0:
        return
    entries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(allowed + place * words + entries // 32, mask=entries < vocab, other=-1)
    forbidden = ((word >> (entries % 32)) & 1) == 0
    tl.store(logits + row * stride + entries, float("-inf"), mask=forbidden & (entries < vocab))


@triton.jit
def _penalize_kernel(logits, places, counts, seen, presence, frequency, repetition, vocab, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(places + row)
    if place < 0:
        return
    entries = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = entries < vocab
    count = tl.load(counts + place * vocab + entries, mask=inside, other=0)
    touched = (count > 0) | (tl.load(seen + place * vocab + entries, mask=inside, other=0) != 0)
    factor = tl.load(repetition + row)
    x = tl.load(logits + row * stride + entries, mask=touched, other=0.0)
    x = tl.where(x > 0, x / factor, x * factor)
    x -= count.to(tl.float32) * tl.load(frequency + row) + (count > 0).to(tl.float32) * tl.load(presence + row)
    tl.store(logits + row * stride + entries, x, mask=touched)


def mask(logits: Tensor, places: Tensor, allowed: Tensor) -> None:
    """See Ops.mask: logits [samples, vocab] f32, places [samples] int64, allowed [n, ceil(vocab / 32)] int32."""
    check_device(logits, places, allowed)
    samples, vocab = logits.shape
    if samples:
        grid = (samples, triton.cdiv(vocab, _BLOCK))
        _mask_kernel[grid](logits, places, allowed, vocab, logits.stride(0), allowed.stride(0), BLOCK=_BLOCK)


def penalize(
    logits: Tensor,
    places: Tensor,
    output_counts: Tensor,
    prompt_seen: Tensor,
    presence: Tensor,
    frequency: Tensor,
    repetition: Tensor,
) -> None:
    """See Ops.penalize: only entries that the row has seen are read and written."""
    settings = [each.contiguous() for each in (presence, frequency, repetition)]
    check_device(logits, places, output_counts, prompt_seen, *settings)
    samples, vocab = logits.shape
    if samples:
        grid = (samples, triton.cdiv(vocab, _BLOCK))
        _penalize_kernel[grid](
            logits, places, output_counts, prompt_seen, *settings, vocab, logits.stride(0), BLOCK=_BLOCK
        )
