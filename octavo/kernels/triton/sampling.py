"""The sampler: one draw per row of logits, without sorting a vocabulary.

The logits are read once. `_scan` takes a chunk of a row: its largest, its mass, the best block of the draw's first
stage where nothing is cut, and else its largest CANDIDATES values. `_draw` joins the chunks of a row: thresholds of
top_k, top_p and min_p are found among the candidates, all of which are known down to some value. Only where a threshold
lies below that value (`_UNSETTLED`, a flat distribution) `_search` reads the row again. Bound by memory: 4 bytes an
entry.

What a draw means, and its noise, stand in kernels/reference/sampling.py: tokens are the same but for near ties in
rounding, since masses are summed in f32 here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.sampling_rows import SamplingRows
from octavo.kernels.triton.launch import check_device, next_power_of_2

BLOCK = 64
"""Ids of one block in the two stages of the draw, as in the reference."""
CHUNK = 8192
"""Entries of one scan. No vocabulary of today has more than 32 of them: their candidates fit in one program."""
CANDIDATES = 256
_UNSETTLED = tl.constexpr(-2)
_NO_CANDIDATE = tl.constexpr((-2139095041 << 32) | 0x7FFFFFFF)
"""The key of -inf, and no id."""
_LEAST = tl.constexpr(-(1 << 31))
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - (1 << 64))
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9 - (1 << 64))
_MIX_2 = tl.constexpr(0x94D049BB133111EB - (1 << 64))


@triton.jit
def _mix(x):
    """splitmix64's finalizer on int64, arithmetic modulo 2^64."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _exponential(key, entries):
    """Exponential(1) noise, a pure function of (key, entry); token ids are entries >= 0, blocks are < 0."""
    bits = (_mix(key + entries * _GOLDEN) >> 11) & 0x1FFFFFFFFFFFFF
    return -tl.log((bits.to(tl.float64) + 0.5) * 1.1102230246251565e-16)


@triton.jit
def _ordered(x):
    """int32 in the order of the f32."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _unordered(key):
    """The f32 of an `_ordered` int32."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _middle(low, high):
    """Half way, rounded down; their sum may be more than an int32 holds."""
    return (low & high) + ((low ^ high) >> 1)


@triton.jit
def _add_within(mass, block, other_mass, other_block):
    """Sums within runs of one block, for a scan."""
    return tl.where(block == other_block, mass, 0.0) + other_mass, other_block


@triton.jit
def _scan(
    logits, temperature, top_k, top_p, min_p, seeds, indices,
    peaks, peak_ids, masses, speeds, blocks, floors, candidates, vocab, stride,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """One chunk of one row."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = row * tl.num_programs(1) + chunk
    entries = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row * stride + entries, mask=entries < vocab, other=float("-inf"))
    peak = tl.max(x, 0)
    broken = tl.max((x != x).to(tl.int32), 0) > 0
    tl.store(peaks + place, tl.where(broken, float("nan"), peak))
    tl.store(peak_ids + place, chunk * CHUNK + tl.argmax(x, 0))
    heat, k = tl.load(temperature + row), tl.load(top_k + row)
    cut = ((k > 0) & (k < vocab)) | (tl.load(top_p + row) < 1) | (tl.load(min_p + row) > 0)
    weights = tl.where(peak > float("-inf"), tl.exp((x - peak) * (1.0 / tl.maximum(heat, 1e-30))), 0.0)
    tl.store(masses + place, tl.sum(weights, 0))
    if (heat > 0) & (k != 1) & (broken == 0):
        if cut:
            # A key that no more than CANDIDATES entries reach, and nearly as many, by halving what lies between.
            keys = _ordered(x)
            low, high, held = tl.min(keys, 0), tl.max(keys, 0) + 1, 0
            if tl.sum((keys >= low).to(tl.int32), 0) <= CANDIDATES:
                high = low
            while (low + 1 < high) & (held < CANDIDATES * 3 // 4):
                middle = _middle(low, high)
                reach = tl.sum((keys >= middle).to(tl.int32), 0)
                few = reach <= CANDIDATES
                high, held = tl.where(few, middle, high), tl.where(few, reach, held)
                low = tl.where(few, low, middle)
            kept = keys >= high
            to = place * CANDIDATES + tl.cumsum(kept.to(tl.int32), 0) - 1
            tl.store(candidates + to, (keys.to(tl.int64) << 32) | entries, mask=kept)
            rest = tl.arange(0, CANDIDATES)
            empty = rest >= tl.sum(kept.to(tl.int32), 0)
            tl.store(candidates + place * CANDIDATES + rest, _NO_CANDIDATE, mask=empty)
            tl.store(floors + place, high)
        else:
            key = _key(seeds, indices, row)
            here = chunk * (CHUNK // BLOCK) + tl.arange(0, CHUNK // BLOCK)
            mass = tl.sum(tl.reshape(weights, [CHUNK // BLOCK, BLOCK]), 1)
            speed = mass.to(tl.float64) / _exponential(key, ~here.to(tl.int64))
            tl.store(speeds + place, tl.max(speed, 0))
            tl.store(blocks + place, chunk * (CHUNK // BLOCK) + tl.argmax(speed, 0))


@triton.jit
def _key(seeds, indices, row):
    return _mix(_mix(tl.load(seeds + row)) + tl.load(indices + row) * _GOLDEN)


@triton.jit
def _within(key, weights, entries, allowed):
    """The draw's second stage: the place of the winner among the token ids `entries` of one block."""
    return tl.argmax(tl.where(allowed, weights.to(tl.float64) / _exponential(key, entries.to(tl.int64)), -1.0), 0)


@triton.jit
def _from_block(logits, key, block, floor, least, peak, heat, vocab, BLOCK: tl.constexpr):
    """The id that wins the second stage, of those of a block whose order reaches `floor` and weight exp(least)."""
    entries = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + entries, mask=entries < vocab, other=float("-inf"))
    scaled = (x - peak) / heat
    kept = (_ordered(x) >= floor) & (entries < vocab) & (scaled >= least)
    return (block * BLOCK + _within(key, tl.exp(scaled), entries, kept)).to(tl.int64)


@triton.jit
def _threshold(orders, weights, total, known, peak, heat, k, p, share, vocab):
    """(the lowest order that top_k and top_p keep, whether the candidates were enough to know and for min_p)."""
    limited = (k > 0) & (k < vocab)
    top = _ordered(peak) + 1
    floor = known * 0 + _LEAST
    settled = share > 0
    if limited:
        low, high = known, top
        settled = tl.sum((orders >= known).to(tl.int32), 0) >= k
        while low + 1 < high:
            middle = _middle(low, high)
            enough = tl.sum((orders >= middle).to(tl.int32), 0) >= k
            low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        floor = low
        total = tl.sum(tl.where(orders >= floor, weights, 0.0), 0)
    if p < 1:
        low, high = tl.maximum(known, floor), top
        wanted = p * total
        reached = tl.sum(tl.where(orders >= low, weights, 0.0), 0) >= wanted
        settled = reached & (settled | (limited == 0))
        while low + 1 < high:
            middle = _middle(low, high)
            enough = tl.sum(tl.where(orders >= middle, weights, 0.0), 0) >= wanted
            low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        floor = low
    if (share > 0) & (limited == 0) & (p >= 1):
        settled = _ordered(peak + heat * _least(share)) > known
    return floor, settled


@triton.jit
def _least(share):
    """The logarithm of min_p."""
    return tl.where(share > 0, tl.log(tl.maximum(share, 1e-38)), float("-inf")).to(tl.float32)


@triton.jit
def _draw(
    logits, temperature, top_k, top_p, min_p, seeds, indices,
    peaks, peak_ids, masses, speeds, blocks, floors, candidates, out, vocab, stride,
    NUM: tl.constexpr, CHUNKS: tl.constexpr, CANDIDATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row, from its NUM chunks; CHUNKS is their number as a power of two."""
    row = tl.program_id(0).to(tl.int64)
    chunks = row * NUM + tl.arange(0, CHUNKS)
    there = tl.arange(0, CHUNKS) < NUM
    peak_of = tl.load(peaks + chunks, mask=there, other=float("-inf"))
    peak = tl.max(peak_of, 0)
    broken = tl.max((peak_of != peak_of).to(tl.int32), 0) > 0
    heat, k = tl.load(temperature + row), tl.load(top_k + row)
    p, share = tl.load(top_p + row), tl.load(min_p + row)
    if broken | (tl.abs(peak) == float("inf")):
        tl.store(out + row, -1)
    elif (heat <= 0) | (k == 1):
        firsts = tl.load(peak_ids + chunks, mask=there, other=2147483647)
        tl.store(out + row, tl.min(tl.where(peak_of == peak, firsts, 2147483647), 0).to(tl.int64))
    else:
        key = _key(seeds, indices, row)
        shrink = tl.exp((peak_of - peak) / heat)
        if ((k > 0) & (k < vocab)) | (p < 1) | (share > 0):
            places = tl.arange(0, CHUNKS * CANDIDATES)
            found = tl.load(candidates + row * NUM * CANDIDATES + places, mask=places < NUM * CANDIDATES,
                            other=_NO_CANDIDATE)  # fmt: skip
            orders = (found >> 32).to(tl.int32)
            # Every entry that reaches `known` is among the candidates.
            known = tl.max(tl.load(floors + chunks, mask=there, other=_LEAST), 0)
            total = tl.sum(tl.load(masses + chunks, mask=there, other=0.0) * shrink, 0)
            scaled = (_unordered(orders) - peak) / heat
            weights = tl.where(orders >= known, tl.exp(scaled), 0.0)
            floor, settled = _threshold(orders, weights, total, known, peak, heat, k, p, share, vocab)
            if settled:
                floor = tl.maximum(floor, known)
                weights = tl.where((orders >= floor) & (scaled >= _least(share)), weights, 0.0)
                block = (found & 0x7FFFFFFF).to(tl.int32) // BLOCK
                # The mass of a block grows along its run of candidates, so its last one is the fastest of the run.
                mass, _ = tl.associative_scan((weights, block), 0, _add_within)
                speed = mass.to(tl.float64) / _exponential(key, ~block.to(tl.int64))
                best = tl.max(tl.where(speed == tl.max(speed, 0), block, -1), 0)
                at = logits + row * stride
                tl.store(out + row, _from_block(at, key, best, floor, _least(share), peak, heat, vocab, BLOCK))
            else:
                tl.store(out + row, _UNSETTLED)
        else:
            fastest = tl.load(speeds + chunks, mask=there, other=0.0) * shrink
            best = tl.load(blocks + row * NUM + tl.argmax(fastest, 0))
            at = logits + row * stride
            tl.store(out + row, _from_block(at, key, best, _LEAST, float("-inf"), peak, heat, vocab, BLOCK))


@triton.jit
def _reaching(logits, row, floor, peak, heat, vocab, stride, NUM: tl.constexpr, CHUNK: tl.constexpr):
    """(number, mass) of the row's entries whose order reaches `floor`."""
    count, mass = 0, 0.0
    for chunk in range(NUM):
        entries = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(logits + row * stride + entries, mask=entries < vocab, other=float("-inf"))
        kept = (_ordered(x) >= floor) & (entries < vocab)
        count += tl.sum(kept.to(tl.int32), 0)
        mass += tl.sum(tl.where(kept, tl.exp((x - peak) / heat), 0.0), 0)
    return count, mass


@triton.jit
def _search(
    logits, temperature, top_k, top_p, min_p, seeds, indices, peaks, out, vocab, stride,
    NUM: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row whose thresholds lie below all candidates: read as often as it takes."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(out + row) != _UNSETTLED:
        return
    chunks = tl.arange(0, CHUNKS)
    peak = tl.max(tl.load(peaks + row * NUM + chunks, mask=chunks < NUM, other=float("-inf")), 0)
    heat, k, p = tl.load(temperature + row), tl.load(top_k + row), tl.load(top_p + row)
    least = _least(tl.load(min_p + row))
    top = _ordered(peak) + 1
    floor = top * 0 + _LEAST
    if (k > 0) & (k < vocab):
        low, high = floor, top
        while low + 1 < high:
            middle = _middle(low, high)
            count, _ = _reaching(logits, row, middle, peak, heat, vocab, stride, NUM, CHUNK)
            low, high = tl.where(count >= k, middle, low), tl.where(count >= k, high, middle)
        floor = low
    if p < 1:
        _, total = _reaching(logits, row, floor, peak, heat, vocab, stride, NUM, CHUNK)
        low, high = floor, top
        while low + 1 < high:
            middle = _middle(low, high)
            _, mass = _reaching(logits, row, middle, peak, heat, vocab, stride, NUM, CHUNK)
            enough = mass >= p * total
            low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        floor = low
    key = _key(seeds, indices, row)
    best_speed, best = top.to(tl.float64) * 0 - 1, top * 0
    for chunk in range(NUM):
        entries = chunk * CHUNK + tl.arange(0, CHUNK)
        x = tl.load(logits + row * stride + entries, mask=entries < vocab, other=float("-inf"))
        scaled = (x - peak) / heat
        kept = (_ordered(x) >= floor) & (entries < vocab) & (scaled >= least)
        mass = tl.sum(tl.reshape(tl.where(kept, tl.exp(scaled), 0.0), [CHUNK // BLOCK, BLOCK]), 1)
        here = chunk * (CHUNK // BLOCK) + tl.arange(0, CHUNK // BLOCK)
        speed = mass.to(tl.float64) / _exponential(key, ~here.to(tl.int64))
        fastest = tl.max(speed, 0)
        best = tl.where(fastest > best_speed, chunk * (CHUNK // BLOCK) + tl.argmax(speed, 0), best)
        best_speed = tl.maximum(best_speed, fastest)
    at = logits + row * stride
    tl.store(out + row, _from_block(at, key, best, floor, least, peak, heat, vocab, BLOCK))


def sample(logits: Tensor, rows: SamplingRows, chunk: int = CHUNK, candidates: int = CANDIDATES) -> Tensor:
    """See Ops.sample: logits [samples, vocab] f32 with contiguous rows → [samples] int64."""
    settings = [each.contiguous() for each in rows]
    check_device(logits, *settings)
    samples, vocab = logits.shape
    num, device = triton.cdiv(vocab, chunk), logits.device
    out = torch.empty(samples, dtype=torch.int64, device=device)
    if not samples:
        return out

    def of_chunks(dtype: torch.dtype, *each: int) -> Tensor:
        return torch.empty((samples, num, *each), dtype=dtype, device=device)

    f32, f64, i32, i64 = torch.float32, torch.float64, torch.int32, torch.int64
    peaks, peak_ids, masses, speeds = of_chunks(f32), of_chunks(i32), of_chunks(f32), of_chunks(f64)
    blocks, floors, kept = of_chunks(i32), of_chunks(i32), of_chunks(i64, candidates)
    found = (peaks, peak_ids, masses, speeds, blocks, floors, kept)
    sizes = {"CANDIDATES": candidates, "BLOCK": BLOCK}
    parts = {"NUM": num, "CHUNKS": next_power_of_2(num)}
    stride = logits.stride(0)
    # Predicted: two programs of a scan on a multiprocessor at once; without the limit its registers allow one.
    _scan[(samples, num)](logits, *settings, *found, vocab, stride, CHUNK=chunk, **sizes, num_warps=16, maxnreg=64)
    _draw[(samples,)](logits, *settings, *found, out, vocab, stride, **parts, **sizes, num_warps=16)
    _search[(samples,)](logits, *settings, peaks, out, vocab, stride, **parts, CHUNK=chunk, BLOCK=BLOCK, num_warps=16)
    return out
