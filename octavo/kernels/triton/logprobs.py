"""Log-probabilities of chosen tokens and of the likeliest ones, without sorting a vocabulary.

`_part` reads a chunk of a row once: its largest value, its mass and its `num_top` largest entries, one after the other.
`_join` adds up the chunks of a row and takes the largest of theirs. Bound by memory for few of them: 4 bytes an entry.
Entries are compared by a key of value and id, so equal ones come in the order of their ids.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.launch import check_device, next_power_of_2
from octavo.kernels.triton.sampling import _ordered, _unordered

CHUNK = 4096
_NONE = tl.constexpr(-(1 << 63))


@triton.jit
def _keys(x, ids):
    """int64, in the order of the f32, then against that of the ids."""
    return (_ordered(x).to(tl.int64) << 32) | (0x7FFFFFFF - ids)


@triton.jit(do_not_specialize=["num_top"])
def _part(logits, peaks, masses, tops, vocab, stride, num_top, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = row * tl.num_programs(1) + chunk
    entries = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row * stride + entries, mask=entries < vocab, other=float("-inf"))
    peak = tl.max(x, 0)
    tl.store(peaks + place, peak)
    weights = tl.exp(x - tl.where(peak == float("-inf"), 0.0, peak))
    broken = tl.max((x != x).to(tl.int32), 0) > 0
    tl.store(masses + place, tl.where(broken, float("nan"), tl.sum(weights, 0)))
    keys = tl.where(entries < vocab, _keys(x, entries), _NONE)
    for i in range(num_top):
        best = tl.max(keys, 0)
        tl.store(tops + place * num_top + i, best)
        keys = tl.where(keys == best, _NONE, keys)


@triton.jit(do_not_specialize=["num_top", "num"])
def _join(
    logits, token_ids, peaks, masses, tops, chosen, values, ids, stride, num_top, num, CHUNKS: tl.constexpr,
    FOUND: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, CHUNKS)
    there = chunks < num
    peak = tl.load(peaks + row * num + chunks, mask=there, other=float("-inf"))
    mass = tl.load(masses + row * num + chunks, mask=there, other=0.0)
    largest = tl.max(peak, 0)
    total = largest + tl.log(tl.sum(tl.where(there, mass * tl.exp(peak - largest), 0.0), 0))
    tl.store(chosen + row, tl.load(logits + row * stride + tl.load(token_ids + row)) - total)
    places = tl.arange(0, FOUND)
    keys = tl.load(tops + row * num * num_top + places, mask=places < num * num_top, other=_NONE)
    for i in range(num_top):
        best = tl.max(keys, 0)
        tl.store(values + row * num_top + i, _unordered((best >> 32).to(tl.int32)) - total)
        tl.store(ids + row * num_top + i, 0x7FFFFFFF - (best & 0x7FFFFFFF))
        keys = tl.where(keys == best, _NONE, keys)


def logprobs(logits: Tensor, token_ids: Tensor, num_top: int, chunk: int = CHUNK) -> tuple[Tensor, Tensor, Tensor]:
    """See Ops.logprobs: logits [samples, vocab] f32 with contiguous rows, token_ids [samples] int64; num_top <= chunk
    and <= vocab."""
    check_device(logits, token_ids)
    (samples, vocab), device = logits.shape, logits.device
    assert logits.stride(1) == 1 and token_ids.is_contiguous() and num_top <= min(chunk, vocab)
    num = triton.cdiv(vocab, chunk)

    def f32(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float32, device=device)

    chosen, values = f32(samples), f32(samples, num_top)
    ids = torch.empty((samples, num_top), dtype=torch.int64, device=device)
    if samples:
        peaks, masses = f32(samples, num), f32(samples, num)
        tops = torch.empty((samples, num, num_top), dtype=torch.int64, device=device)
        stride = logits.stride(0)
        _part[(samples, num)](logits, peaks, masses, tops, vocab, stride, num_top, CHUNK=chunk, num_warps=8)
        _join[(samples,)](
            logits, token_ids, peaks, masses, tops, chosen, values, ids, stride, num_top, num,
            CHUNKS=next_power_of_2(num), FOUND=max(next_power_of_2(num * num_top), 128), num_warps=4,
        )  # fmt: skip
    return chosen, values, ids
