"""norm, silu_mul, convert and embed on every instruction set, into every row format: against numpy in f64, and to the
bit against themselves whatever other rows there are and however the work is shared out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_rows import BF16, F32, FORMATS, Array, Rows, address, aligned, from_bf16, native, run, to_bf16

each_isa = pytest.mark.parametrize("isa", native.isas())
each_format = pytest.mark.parametrize("format", FORMATS, ids=FORMATS.values())
sizes = given(rows=st.integers(0, 20), k=st.integers(1, 400), threads=st.integers(1, 3))


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def check(found: Rows, wanted: npt.NDArray[np.float64]) -> None:
    """The values, each within what its format rounds: half a step of its group in int8, 1/127 of the largest."""
    values = found.values()
    assert values.shape == wanted.shape
    if found.format == F32:
        np.testing.assert_allclose(values, wanted, rtol=2e-6, atol=1e-7)
    elif found.format == BF16:
        np.testing.assert_allclose(values, wanted, rtol=2**-8 + 2e-6, atol=1e-7)
    elif wanted.size:
        padded = np.pad(wanted, ((0, 0), (0, -wanted.shape[1] % 32))).reshape(wanted.shape[0], -1, 32)
        step = np.repeat(np.abs(padded).max(-1) / 127, 32, axis=1)[:, : wanted.shape[1]]
        assert (np.abs(values - wanted) <= 0.501 * step + 1e-30).all()


def normed(isa: str, x: Array, weight: Array, format: int, add: Array | None = None, threads: int = 1) -> Rows:
    """x is overwritten with x + add."""
    out = Rows(*x.shape, format)
    k = x.shape[1]
    run(
        isa,
        x.shape[0],
        lambda p: p.norm(address(x), k, address(add), k, address(weight), 1e-5, k, out.address, format),
        threads,
    )
    return out


@each_isa
@each_format
@settings(max_examples=40, deadline=None)
@sizes
def test_convert(isa: str, format: int, rows: int, k: int, threads: int) -> None:
    wide, out = random(1, rows, k + 5), Rows(rows, k, format)
    run(isa, rows, lambda p: p.convert(address(wide), k + 5, k, out.address, format), threads)
    check(out, wide[:, :k].astype(np.float64))


@each_isa
@each_format
@settings(max_examples=40, deadline=None)
@sizes
def test_norm(isa: str, format: int, rows: int, k: int, threads: int) -> None:
    x, weight = random(1, rows, k), random(2, k)
    before = x.copy()
    out = normed(isa, x, weight, format, threads=threads)
    np.testing.assert_array_equal(x, before)
    x64 = x.astype(np.float64)
    check(out, x64 / np.sqrt((x64**2).mean(1, keepdims=True) + 1e-5) * weight)


@each_isa
@each_format
@settings(max_examples=40, deadline=None)
@sizes
def test_norm_after_adding(isa: str, format: int, rows: int, k: int, threads: int) -> None:
    x, add, weight = random(1, rows, k), random(2, rows, k), random(3, k)
    total = x + add
    out = normed(isa, x, weight, format, add, threads)
    np.testing.assert_array_equal(x, total)
    x64 = total.astype(np.float64)
    check(out, x64 / np.sqrt((x64**2).mean(1, keepdims=True) + 1e-5) * weight)


@each_isa
@each_format
@settings(max_examples=40, deadline=None)
@sizes
def test_silu_mul(isa: str, format: int, rows: int, k: int, threads: int) -> None:
    x, out = 4 * random(1, rows, 2 * k), Rows(rows, k, format)
    run(isa, rows, lambda p: p.silu_mul(address(x), 2 * k, k, out.address, format), threads)
    gate, up = x[:, :k].astype(np.float64), x[:, k:]
    check(out, gate / (1 + np.exp(-gate)) * up)


@each_isa
def test_silu_far_out(isa: str) -> None:
    gate = np.array([[-1e30, -200, -88, -30, 0, 30, 88, 200, 1e30]], np.float32)
    x, out = np.concatenate([gate, np.ones_like(gate)], axis=1), Rows(1, 9, F32)
    run(isa, 1, lambda p: p.silu_mul(address(x), 18, 9, out.address, F32))
    wanted = np.where(gate < 0, np.float64(gate) * np.exp(np.minimum(gate, 0, dtype=np.float64)), gate)
    np.testing.assert_allclose(out.values()[:, 1:], wanted[:, 1:], rtol=2e-6, atol=1e-35)
    assert abs(out.values()[0, 0]) < 1e-7  # -1e30 / e^88, not NaN


@each_isa
@each_format
@pytest.mark.parametrize("k", [576, 77])
def test_a_row_is_the_same_in_any_company(isa: str, format: int, k: int) -> None:
    x, weight, add = random(1, 2000, k), random(2, k), random(3, 2000, k)
    whole = normed(isa, x.copy(), weight, format, add)
    shared = normed(isa, x.copy(), weight, format, add, threads=3)
    np.testing.assert_array_equal(whole.bytes, shared.bytes)
    for row in (0, 1, 777, 1999):
        alone = normed(isa, x[row : row + 1].copy(), weight, format, add[row : row + 1].copy())
        np.testing.assert_array_equal(whole.bytes[row : row + 1], alone.bytes)


@each_isa
@each_format
def test_a_row_of_zeros_is_zeros(isa: str, format: int) -> None:
    out = normed(isa, np.zeros((2, 100), np.float32), random(1, 100), format)
    assert (out.values() == 0).all()


@each_isa
@each_format
def test_what_is_not_a_number_shows(isa: str, format: int) -> None:
    x = random(1, 3, 64)
    x[1, 40] = np.nan
    if format in (F32, BF16):
        values = normed(isa, x, np.ones(64, np.float32), format).values()
    else:
        row = np.ascontiguousarray(normed(isa, x, np.ones(64, np.float32), format).bytes)
        values = np.ascontiguousarray(row[:, 64:72]).view(np.float32)  # the scales
    assert np.isfinite(values[[0, 2]]).all() and not np.isfinite(values[1]).all()


@each_isa
@pytest.mark.parametrize("kind", ["f32", "bf16", "f16", "int8", "int4"])
def test_embed(isa: str, kind: str) -> None:
    n, k = 70, 96
    w = random(1, n, k)
    rng = np.random.default_rng(2)
    scales, minimums = (rng.random((n, k // 32)).astype(np.float16) for _ in range(2))
    if kind == "f32":
        table, wanted = native.Matrix.f32(address(w), n, k), w
    elif kind == "bf16":
        half = to_bf16(w)
        table, wanted = native.Matrix.bf16(address(half), n, k), from_bf16(half)
    elif kind == "f16":
        half = w.astype(np.float16)
        table, wanted = native.Matrix.f16(address(half), n, k), half.astype(np.float32)
    elif kind == "int8":
        q = rng.integers(-127, 128, (n, k), np.int8)
        table = native.Matrix.int8(address(q), address(scales), False, 32, n, k)
        wanted = q * np.repeat(scales.astype(np.float32), 32, axis=1)
    else:
        nibbles = rng.integers(0, 16, (n, k), np.uint8)
        packed = np.ascontiguousarray(nibbles[:, 0::2] | nibbles[:, 1::2] << 4)
        table = native.Matrix.int4(address(packed), address(scales), address(minimums), False, 32, n, k)
        wanted = nibbles * np.repeat(scales.astype(np.float32), 32, axis=1) + np.repeat(
            minimums.astype(np.float32), 32, 1
        )
    ids, ld = rng.integers(0, n, 301), k + 16
    out = aligned(301 * ld, np.float32).reshape(301, ld)
    run(isa, 301, lambda p: p.embed(table, address(ids), address(out), ld), threads=2)
    np.testing.assert_allclose(out[:, :k], wanted[ids], rtol=1e-6, atol=1e-6)
    assert np.isnan(out[:, k:]).all()
