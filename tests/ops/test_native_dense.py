"""Products with f32, bf16 and f16 matrices on every instruction set: against numpy in f64, and to the bit against
themselves whatever other rows there are and however the work is shared out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_rows import BF16, F32, Array, Rows, address, aligned, bits, from_bf16, native, run, to_bf16

each_isa = pytest.mark.parametrize("isa", native.isas())
F16 = -1  # a kind of matrix; its rows are f32
each_kind = pytest.mark.parametrize("kind", [F32, BF16, F16], ids=["f32", "bf16", "f16"])


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def rounded(x: Array, kind: int) -> Array:
    """As a matrix of this kind holds it."""
    if kind == F16:
        return x.astype(np.float16).astype(np.float32)
    return from_bf16(to_bf16(x)) if kind == BF16 else x


def as_rows(x: Array, kind: int) -> Array:
    """As rows are given to such a matrix."""
    return rounded(x, BF16) if kind == BF16 else x


def matrix(w: Array, kind: int) -> Any:
    if kind == F16:
        half = w.astype(np.float16)
        return native.Matrix.f16(address(half), *w.shape)
    data = to_bf16(w) if kind == BF16 else np.ascontiguousarray(w)
    return (native.Matrix.bf16 if kind == BF16 else native.Matrix.f32)(address(data), *w.shape)


def linear(
    isa: str, x: Array, w: Any, bias: Array | None = None, add: Array | None = None, threads: int = 1, extra: int = 3
) -> Array:
    """[rows, n]; `extra` columns between the rows of the output must stay as they are."""
    rows, ld = Rows.of(isa, x, w.format), w.n + extra
    out = aligned(x.shape[0] * ld, np.float32).reshape(-1, ld)
    if add is not None:
        out[:, : w.n] = add
    run(
        isa,
        x.shape[0],
        lambda p: p.linear(rows.address, w, address(bias), address(out), ld, add is not None),
        threads,
    )
    assert np.isnan(out[:, w.n :]).all(), "written beyond the columns"
    return out[:, : w.n].copy()


def check(found: Array, x: Array, w: Array, kind: int, bias: Array | None = None, add: Array | None = None) -> None:
    """Within a few roundings of f32 of the magnitudes that are summed."""
    x64, w64 = as_rows(x, kind).astype(np.float64), rounded(w, kind).astype(np.float64)
    wanted, size = x64 @ w64.T, np.abs(x64) @ np.abs(w64).T
    for more in (bias, add):
        if more is not None:
            wanted, size = wanted + more, size + np.abs(more)
    assert (np.abs(found - wanted) <= 1e-30 + 3e-7 * np.sqrt(x.shape[1]) * size).all()


@each_isa
@each_kind
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 100),
    k=st.integers(1, 700),
    rows=st.integers(0, 30),
    with_bias=st.booleans(),
    with_add=st.booleans(),
    threads=st.integers(1, 3),
)
def test_linear(isa: str, kind: int, n: int, k: int, rows: int, with_bias: bool, with_add: bool, threads: int) -> None:
    x, w = random(1, rows, k), random(2, n, k)
    bias = random(3, n) if with_bias else None
    add = random(4, rows, n) if with_add else None
    check(linear(isa, x, matrix(w, kind), bias, add, threads), x, w, kind, bias, add)


@each_isa
@each_kind
@pytest.mark.parametrize(
    ("rows", "n", "k"), [(2500, 65, 70), (513, 176, 64), (1, 2048, 576), (145, 40, 1536), (3, 33, 5000)]
)
def test_linear_of_many(isa: str, kind: int, rows: int, n: int, k: int) -> None:
    x, w = random(1, rows, k), random(2, n, k)
    check(linear(isa, x, matrix(w, kind), threads=2), x, w, kind)


@each_isa
@each_kind
@pytest.mark.parametrize("k", [576, 1001])
def test_a_row_is_the_same_in_any_company(isa: str, kind: int, k: int) -> None:
    x, w, bias = random(1, 300, k), matrix(random(2, 177, k), kind), random(3, 177)
    whole = linear(isa, x, w, bias)
    for threads in (2, 3):
        np.testing.assert_array_equal(bits(whole), bits(linear(isa, x, w, bias, threads=threads)))
    first = 0
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 16, 23, 24, 25, 37):
        part = linear(isa, x[first : first + rows], w, bias, threads=1 + rows % 2)
        np.testing.assert_array_equal(bits(part), bits(whole[first : first + rows]))
        first += rows


@each_isa
@each_kind
def test_rows_that_are_not_numbers_keep_it_to_themselves(isa: str, kind: int) -> None:
    x, w = random(1, 14, 100), matrix(random(2, 40, 100), kind)
    clean = linear(isa, x, w)
    x[3, 7], x[9, 99] = np.nan, np.inf
    found = linear(isa, x, w)
    assert np.isnan(found[3]).all() and not np.isfinite(found[9]).any()
    others = [r for r in range(14) if r not in (3, 9)]
    np.testing.assert_array_equal(bits(found[others]), bits(clean[others]))


@each_isa
@each_kind
@pytest.mark.parametrize("rows", [1, 2, 13, 130])
@pytest.mark.parametrize("threads", [1, 2])
def test_gate_up(isa: str, kind: int, rows: int, threads: int) -> None:
    inner, k = 96, 165
    x, w, bias = random(1, rows, k), 0.2 * random(2, 2 * inner, k), random(3, 2 * inner)
    packed, out = matrix(w, kind), Rows(rows, inner, F32)
    given_rows = Rows.of(isa, x, packed.format)
    run(isa, rows, lambda p: p.gate_up(given_rows.address, packed, address(bias), out.address, F32), threads)
    both = as_rows(x, kind).astype(np.float64) @ rounded(w, kind).astype(np.float64).T + bias
    gate, up = both[:, :inner], both[:, inner:]
    np.testing.assert_allclose(out.values(), gate / (1 + np.exp(-gate)) * up, rtol=3e-4, atol=3e-5)
    alone, last = Rows(1, inner, F32), Rows.of(isa, x[-1:], packed.format)
    run(isa, 1, lambda p: p.gate_up(last.address, packed, address(bias), alone.address, F32))
    np.testing.assert_array_equal(bits(out.values()[-1:]), bits(alone.values()))


@each_kind
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 32), (17, 33), (100, 31), (31, 576)])
def test_unpack_gives_back_what_was_packed(kind: int, n: int, k: int) -> None:
    w = random(1, n, k)
    packed = matrix(w, kind)
    assert packed.nbytes == -(-n // 16) * (k if kind == F32 else -(-k // 2)) * 64
    out = aligned(n * k, np.float32).reshape(n, k)
    packed.unpack(0, n, address(out))
    np.testing.assert_array_equal(out, rounded(w, kind))
    packed.unpack(n - 1, n, address(out))
    np.testing.assert_array_equal(out[0], rounded(w, kind)[-1])


@each_isa
@pytest.mark.parametrize("rows", [1, 5, 130])
def test_f16_is_f32_to_the_bit(isa: str, rows: int) -> None:
    """An f16 weight is an f32 number: every one there is, the smallest and the largest, not only usual ones."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    w = np.where(np.isfinite(every), every, 0).astype(np.float32).reshape(-1, 512)
    x = random(1, rows, 512)
    np.testing.assert_array_equal(bits(linear(isa, x, matrix(w, F16))), bits(linear(isa, x, matrix(w, F32))))


@each_isa
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_f16_weights_that_are_not_finite_reach_the_result(isa: str, bad: float) -> None:
    w = random(2, 40, 100)
    w[7, 99] = bad
    found = linear(isa, random(1, 3, 100), matrix(w, F16))
    assert not np.isfinite(found[:, 7]).any() and np.isfinite(np.delete(found, 7, axis=1)).all()
