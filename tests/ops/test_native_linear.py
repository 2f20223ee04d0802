"""Integer products of every instruction set: int8 rows times int4 and int8 matrices, against numpy in f64 on what the
quantized rows and weights stand for, so that all that differs is the rounding of f32 sums; and that a row's result
depends, to the bit, on nothing but the row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

native = pytest.importorskip("octavo.kernels.cpu._native", reason="the native kernels are not built")

Array = npt.NDArray[np.float32]
F32, BF16, Q8_32, Q8_16 = 0, 1, 2, 3
each_isa = pytest.mark.parametrize("isa", native.isas())


@dataclass(frozen=True)
class Form:
    kind: str
    group: int
    f32_scales: bool


FORMS = [Form(kind, group, f32) for kind in ("int4", "int8") for group in (32, 16) for f32 in (False, True)]
each_form = pytest.mark.parametrize(
    "form", FORMS, ids=lambda f: f"{f.kind}-{f.group}-{'f32' if f.f32_scales else 'f16'}"
)


def aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    """Zeros on a 64-byte boundary, as the workspace's rows are."""
    memory = np.zeros(nbytes + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:nbytes]


def matrix(form: Form, n: int, k: int, seed: int = 0) -> tuple[Any, npt.NDArray[np.float64]]:
    """A packed matrix of extreme and ordinary values, and what it stands for, [n, k]."""
    rng = np.random.default_rng(seed)
    scale_type = np.float32 if form.f32_scales else np.float16
    scales = (rng.random((n, k // form.group)) + 0.01).astype(scale_type)
    spread = np.repeat(scales, form.group, axis=1).astype(np.float64)
    if form.kind == "int8":
        q = rng.integers(-128, 128, (n, k), dtype=np.int8)
        q[0] = -128
        packed = native.Matrix.int8(q.ctypes.data, scales.ctypes.data, form.f32_scales, form.group, n, k)
        return packed, q * spread
    minimums = (rng.standard_normal((n, k // form.group)) * 8).astype(scale_type)
    q4 = rng.integers(0, 16, (n, k), dtype=np.uint8)
    q4[0] = 15
    bytes_ = np.ascontiguousarray(q4[:, ::2] | q4[:, 1::2] << 4)
    packed = native.Matrix.int4(
        bytes_.ctypes.data, scales.ctypes.data, minimums.ctypes.data, form.f32_scales, form.group, n, k
    )
    return packed, q4 * spread + np.repeat(minimums, form.group, axis=1).astype(np.float64)


class Rows:
    """f32 rows [m, k] quantized by the native kernels, and what they stand for."""

    def __init__(self, isa: str, x: Array, form: Form, threads: int = 1) -> None:
        self.m, self.k = x.shape
        self.isa, self.threads, self.format = isa, threads, Q8_16 if form.group == 16 else Q8_32
        self.stride = native.row_bytes(self.format, self.k)
        self.memory = aligned(max(1, self.m) * self.stride)
        source = aligned(x.nbytes).view(np.float32)
        source[:] = x.reshape(-1)
        program = self.program(self.m)
        program.convert(source.ctypes.data, self.k, self.k, self.memory.ctypes.data, self.format)
        program.run()

    def program(self, m: int) -> Any:
        inputs = native.Inputs(max(m, 1), 1, 1, 16)
        self.arrays = [np.zeros(m + 2, np.int64) for _ in range(8)]
        inputs.assign(m, 1 if m else 0, 0, 16, *(a.ctypes.data for a in self.arrays))
        return native.Program(native.Pool(self.threads), inputs, self.isa)

    def values(self) -> npt.NDArray[np.float64]:
        kp = -(-self.k // 32) * 32
        rows = self.memory.reshape(-1, self.stride)[: self.m]
        scales = np.ascontiguousarray(rows[:, kp : kp + kp // 8]).view(np.float32).astype(np.float64)
        return (rows[:, :kp].view(np.int8).astype(np.float64) * np.repeat(scales, 32, axis=1))[:, : self.k]

    def linear(
        self, weight: Any, first: int, count: int, bias: Array | None = None, into: Array | None = None
    ) -> Array:
        out = np.full((count, weight.n), np.nan, np.float32) if into is None else into.copy()
        program = self.program(count)
        at = self.memory.ctypes.data + first * self.stride
        bias_at = 0 if bias is None else bias.ctypes.data
        program.linear(at, weight, bias_at, out.ctypes.data, weight.n, into is not None)
        program.run()
        return out


def activations(m: int, k: int, seed: int = 0) -> Array:
    """Ordinary rows with an outlier here and there; a whole group of zeros and one too small to have a scale."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, k)).astype(np.float32)
    x[rng.random((m, k)) < 0.01] *= 50
    if m > 1:
        x[0, :32], x[1, :32] = 0, 1e-38
    return x


def check(form: Form, isa: str, m: int, n: int, k: int, seed: int = 0) -> None:
    weight, dense = matrix(form, n, k, seed)
    rows = Rows(isa, activations(m, k, seed), form)
    x = rows.values()
    wanted, size = x @ dense.T, np.abs(x) @ np.abs(dense).T
    if form.kind == "int4":  # its minimums are added apart, where more than these sizes may cancel
        size += 0.2 * np.abs(x).sum(1, keepdims=True) * np.abs(dense).max()
    assert np.all(np.abs(rows.linear(weight, 0, m) - wanted) <= 2e-6 * size)
    bias = np.arange(n, dtype=np.float32)
    base = np.full((m, n), 3, np.float32)
    found = rows.linear(weight, 0, m, bias, base)
    assert np.all(np.abs(found - (wanted + bias + base)) <= 2e-6 * (size + bias + 3))


@each_isa
@each_form
@pytest.mark.parametrize(
    ("m", "n", "k"), [(0, 16, 32), (1, 1, 32), (1, 33, 576), (5, 16, 96), (6, 100, 64), (7, 48, 2080), (61, 31, 160)]
)
def test_product(form: Form, isa: str, m: int, n: int, k: int) -> None:
    check(form, isa, m, n, k)


@each_isa
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMS), st.integers(1, 40), st.integers(1, 70), st.integers(1, 20), st.integers(0, 1000))
def test_product_of_any_shape(isa: str, form: Form, m: int, n: int, groups: int, seed: int) -> None:
    check(form, isa, m, n, groups * form.group, seed)


@each_isa
def test_thousands_of_rows(isa: str) -> None:
    check(Form("int4", 32, False), isa, 3001, 48, 64)


@each_isa
@each_form
def test_a_row_is_the_same_in_any_company(form: Form, isa: str) -> None:
    m, n, k = 40, 83, 16 * 9 if form.group == 16 else 32 * 7
    weight, _ = matrix(form, n, k)
    x = activations(m, k)
    rows = Rows(isa, x, form)
    whole = rows.linear(weight, 0, m)
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 31):
        for first in range(0, m - count + 1, 7):
            assert np.array_equal(rows.linear(weight, first, count), whole[first : first + count])
    assert np.array_equal(Rows(isa, x, form, threads=2).linear(weight, 0, m), whole)


@each_isa
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_reaches_the_result(isa: str, bad: float) -> None:
    form = Form("int4", 32, False)
    weight, _ = matrix(form, 32, 96)
    x = activations(3, 96)
    x[1, 40] = bad
    found = Rows(isa, x, form).linear(weight, 0, 3)
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(found[[0, 2]]).all()


@each_isa
@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("out_format", [F32, BF16, Q8_32, Q8_16])
@pytest.mark.parametrize("m", [1, 5, 37, 130])
def test_gate_up_is_its_parts(isa: str, kind: str, out_format: int, m: int) -> None:
    form, inner, k = Form(kind, 32, False), 96, 64
    weight, _ = matrix(form, 2 * inner, k)
    rows = Rows(isa, activations(m, k) * np.float32(0.01), form, threads=2)
    bias = np.linspace(-1, 1, 2 * inner, dtype=np.float32)
    stride = native.row_bytes(out_format, inner)

    def gate_up(first: int, count: int) -> npt.NDArray[np.uint8]:
        out = aligned(count * stride)
        program = rows.program(count)
        at = rows.memory.ctypes.data + first * rows.stride
        program.gate_up(at, weight, bias.ctypes.data, out.ctypes.data, out_format)
        program.run()
        return out.reshape(count, stride)

    product = rows.linear(weight, 0, m, bias).astype(np.float64)
    gate, up = product[:, :inner], product[:, inner:]
    wanted = gate / (1 + np.exp(-gate)) * up
    found = gate_up(0, m)
    for first in range(0, m, 11):
        assert np.array_equal(gate_up(first, 1), found[first : first + 1])
    tolerance = 1e-5 * np.abs(wanted) + 1e-6
    if out_format == F32:
        values = found[:, : inner * 4].view(np.float32).astype(np.float64)
    elif out_format == BF16:
        halves = found[:, : inner * 2].view(np.uint16).astype(np.uint32) << 16
        values = halves.view(np.float32).astype(np.float64)
        tolerance = tolerance + np.abs(wanted) * 2.0**-8
    else:
        scales = found[:, inner : inner + inner // 8].copy().view(np.float32).astype(np.float64)
        values = found[:, :inner].view(np.int8).astype(np.float64) * np.repeat(scales, 32, axis=1)
        tolerance = tolerance + np.repeat(scales, 32, axis=1) * 0.501
        group = 16 if out_format == Q8_16 else 32
        sums = found[:, :inner].view(np.int8).reshape(m, -1, group).sum(axis=2, dtype=np.int32)
        end = inner + inner // 8
        tail = found[:, end : end + 2 * (inner // group * 4)].copy()
        scaled = tail[:, : inner // group * 4].view(np.float32)
        assert np.array_equal(tail[:, inner // group * 4 :].view(np.int32), -128 * sums)
        assert np.allclose(scaled, sums * np.repeat(scales, 32 // group, axis=1), rtol=1e-6, atol=0)
    assert np.all(np.abs(values - wanted) <= tolerance)
