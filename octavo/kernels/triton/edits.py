"""Changes to logits before a draw: the mask of a grammar and the penalties. In place; bound by memory.

A thread takes logits by fours, 16 bytes: fours of which nothing changes are neither read nor written, and a four that
is forbidden as a whole is written without being read.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.sampling_rows import PenaltyRows
from octavo.kernels.triton.launch import check_device

_BLOCK = 2048


@triton.jit
def _mask_kernel(logits, places, allowed, vocab, stride, words, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(places + row)
    if place < 0:
        return
    fours = tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    entries = fours[:, None] * 4 + tl.arange(0, 4)[None, :]
    word = tl.load(allowed + place * words + fours // 8, mask=fours * 4 < vocab, other=-1)
    bits = (word >> (fours % 8 * 4)) & 15
    at = logits + row * stride + entries
    inside = entries < vocab
    x = tl.load(at, mask=((bits != 0) & (bits != 15))[:, None] & inside, other=float("-inf"))
    x = tl.where(((bits[:, None] >> tl.arange(0, 4)[None, :]) & 1) == 0, float("-inf"), x)
    tl.store(at, x, mask=(bits != 15)[:, None] & inside)


@triton.jit
def _penalize_kernel(logits, places, counts, seen, presence, frequency, repetition, vocab, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(places + row)
    if place < 0:
        return
    fours = tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    entries = fours[:, None] * 4 + tl.arange(0, 4)[None, :]
    inside = entries < vocab
    count = tl.load(counts + place * vocab + entries, mask=inside, other=0)
    marks = tl.load(seen + place * vocab + entries, mask=inside, other=0)
    touched = (count > 0) | (marks != 0)
    some = (tl.max(touched.to(tl.int32), 1) > 0)[:, None] & inside
    factor = tl.load(repetition + row)
    x = tl.load(logits + row * stride + entries, mask=some, other=0.0)
    changed = tl.where(x > 0, x / factor, x * factor)
    changed -= count.to(tl.float32) * tl.load(frequency + row) + (count > 0).to(tl.float32) * tl.load(presence + row)
    tl.store(logits + row * stride + entries, tl.where(touched, changed, x), mask=some)


def mask(logits: Tensor, places: Tensor, allowed: Tensor) -> None:
    """See Ops.mask: logits [samples, vocab] f32, places [samples] int64, allowed [n, ceil(vocab / 32)] int32."""
    check_device(logits, places, allowed)
    samples, vocab = logits.shape
    if samples:
        grid = (samples, triton.cdiv(vocab, _BLOCK))
        _mask_kernel[grid](logits, places, allowed, vocab, logits.stride(0), allowed.stride(0), BLOCK=_BLOCK)


def penalize(logits: Tensor, rows: PenaltyRows) -> None:
    """See Ops.penalize: only entries that the row has seen are read and written."""
    places, output_counts, prompt_seen, *given = rows
    settings = [each.contiguous() for each in given]
    check_device(logits, places, output_counts, prompt_seen, *settings)
    samples, vocab = logits.shape
    if samples:
        grid = (samples, triton.cdiv(vocab, _BLOCK))
        _penalize_kernel[grid](
            logits, places, output_counts, prompt_seen, *settings, vocab, logits.stride(0), BLOCK=_BLOCK
        )
