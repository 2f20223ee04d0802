"""Sums of one tile of a product, of rows of x wherever they lie and rows of a weight as it lies in memory; what
linear.py and moe.py are made of.

All: `at` [M, 1] pointers to rows of x of which `shown` [M] are there, `rows` [N] int64 rows of the weight of which
`there` [N] are; k in_features → [M, N] f32. The weight is made dense in registers; a scale is loaded once for its group
and never once for each element.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dense_sums(
    at, shown, w, rows, there, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr
):
    sums = tl.zeros([M, N], tl.float32)
    for start in range(0, k, K):
        columns = start + tl.arange(0, K)
        inside = columns < k
        values = tl.load(at + columns[None, :], mask=shown[:, None] & inside[None, :], other=0.0)
        weights = tl.load(w + rows[None, :] * k + columns[:, None], mask=there[None, :] & inside[:, None], other=0.0)
        sums = tl.dot(values, weights.to(values.dtype), sums, input_precision=PRECISION)
    return sums


@triton.jit
def scaled_sums(
    at, shown, q, scales, rows, there, k, begin, end, GROUP: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """int8 or fp8, a scale for each GROUP of in_features; GROUP 0: one for the whole row, applied at the end. Of
    in_features begin .. end alone, whole Ks of them."""
    GROUPS: tl.constexpr = K // GROUP if GROUP > 0 and GROUP < K else 1
    sums = tl.zeros([M, N], tl.float32)
    for start in range(begin, end, K):
        columns = start + tl.arange(0, K)
        inside = columns < k
        values = tl.load(at + columns[None, :], mask=shown[:, None] & inside[None, :], other=0.0)
        weights = tl.load(q + rows[None, :] * k + columns[:, None], mask=there[None, :] & inside[:, None], other=0.0)
        weights = of_bytes(weights)
        if GROUP > 0:
            groups = start // GROUP + tl.arange(0, GROUPS)
            held = there[None, :] & (groups < k // GROUP)[:, None]
            scale = tl.load(scales + rows[None, :] * (k // GROUP) + groups[:, None], mask=held, other=0.0)
            weights = _times(weights.to(tl.float32), scale.to(tl.float32), GROUPS, K, N)
        sums = tl.dot(values, weights.to(values.dtype), sums, input_precision=PRECISION)
    if GROUP == 0:
        sums *= tl.load(scales + rows, mask=there, other=0.0).to(tl.float32)[None, :]
    return sums


@triton.jit
def int4_sums(
    at, shown, packed, scales, minimums, rows, there, k, half, one, begin, end, GROUP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As scaled_sums. See linear.GroupedInt4; half is k / 2, an argument of its own so that the compiler sees what it
    divides by; one: see int4_pair."""
    GROUPS: tl.constexpr = K // GROUP if GROUP < K else 1
    HALF: tl.constexpr = GROUP // 2
    sums = tl.zeros([M, N], tl.float32)
    for start in range(begin // 2, end // 2, K // 2):
        places = start + tl.arange(0, K // 2)
        inside = places < half
        columns = places // HALF * GROUP + places % HALF
        low = tl.load(at + columns[None, :], mask=shown[:, None] & inside[None, :], other=0.0)
        high = tl.load(at + HALF + columns[None, :], mask=shown[:, None] & inside[None, :], other=0.0)
        fours = start // 4 + tl.arange(0, K // 8)
        words = packed.to(tl.pointer_type(tl.int32)) + rows[:, None] * (half // 4) + fours[None, :]
        bits = int4_bits(tl.load(words, mask=there[:, None] & (fours < half // 4)[None, :], other=0), N, K // 2)
        groups = start // HALF + tl.arange(0, GROUPS)
        held = there[:, None] & (groups < k // GROUP)[None, :]
        of_group = rows[:, None] * (k // GROUP) + groups[None, :]
        scale = tl.load(scales + of_group, mask=held, other=0.0).to(tl.float32)
        minimum = tl.load(minimums + of_group, mask=held, other=0.0).to(tl.float32)
        first, second = int4_pair(bits, one)
        first = tl.trans(_times_plus(first, scale * 256, minimum - scale * 256, GROUPS, K // 2, N).to(low.dtype))
        second = tl.trans(_times_plus(second, scale * 16, minimum - scale * 16, GROUPS, K // 2, N).to(low.dtype))
        sums = tl.dot(low, first, sums, input_precision=PRECISION)
        sums = tl.dot(high, second, sums, input_precision=PRECISION)
    return sums


@triton.jit
def of_bytes(x):
    """e4m3 as bytes → f16, exactly: its bits fit in those of an f16 whose exponent is 8 less. Of other types: x."""
    if x.dtype == tl.uint8:
        bits = ((x & 0x80).to(tl.uint16) << 8) | ((x & 0x7F).to(tl.uint16) << 7)
        x = bits.to(tl.float16, bitcast=True) * 256.0
    return x


@triton.jit
def int4_pair(bits, one):
    """Bytes that stand in bits 15 to 22 of int32s → (1 + low half / 256, 1 + high half / 16) in f32: each half is put
    into the mantissa of 1 by one operation, while conversions of integers run at half the rate. `one`: its bits, as an
    argument, since two constants in one expression make two operations."""
    low, high = (bits & 0x78000) | one, (bits & 0x780000) | one
    return low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)


@triton.jit
def int4_bits(words, N: tl.constexpr, K: tl.constexpr):
    """[N, K / 4] int32 of four bytes each → [N, K]: each byte where `int4_pair` wants it, with others around it."""
    even, odd = tl.join(words << 15, words >> 1), tl.join(words << 7, words >> 9)
    return tl.reshape(tl.join(even, odd), [N, K])


@triton.jit
def _times(x, scale, GROUPS: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """x [K, N] * scale [GROUPS, N], each scale for its group of K."""
    if GROUPS == 1:
        return x * scale
    return tl.reshape(tl.reshape(x, [GROUPS, K // GROUPS, N]) * scale[:, None, :], [K, N])


@triton.jit
def _times_plus(x, scale, minimum, GROUPS: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """x [N, K] * scale [N, GROUPS] + minimum, each for its group of K."""
    if GROUPS == 1:
        return x * scale + minimum
    return tl.reshape(tl.reshape(x, [N, GROUPS, K // GROUPS]) * scale[:, :, None] + minimum[:, :, None], [N, K])


@triton.jit
def store_tile(sums, bias, at, shown, rows, there, BIAS: tl.constexpr):
    """at [M, 1]: pointers to rows of the result."""
    if BIAS:
        sums += tl.load(bias + rows, mask=there, other=0.0).to(tl.float32)[None, :]
    tl.store(at + rows[None, :], sums.to(at.dtype.element_ty), mask=shown[:, None] & there[None, :])
