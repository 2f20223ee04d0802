"""For test_native_dense.py and test_native_rows.py: rows in the formats of csrc/types.h, read back with numpy, and one
native operation on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

native = pytest.importorskip("octavo.kernels.cpu._native", reason="the native kernels are not built")

F32, BF16, Q8_32, Q8_16 = range(4)
FORMATS = {F32: "f32", BF16: "bf16", Q8_32: "q8_32", Q8_16: "q8_16"}
GUARD = 64  # bytes after an array that nothing may write
Array = npt.NDArray[np.float32]


def address(x: npt.NDArray[Any] | None) -> int:
    return 0 if x is None else int(x.ctypes.data)


def aligned(count: int, dtype: Any) -> npt.NDArray[Any]:
    """`count` elements at a multiple of 64 bytes, all bytes 0xff: NaN unless somebody writes them."""
    size = count * np.dtype(dtype).itemsize
    memory = np.full(size + 64 + GUARD, 0xFF, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype)


def bits(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """For comparisons in which NaN equals itself and 0 does not equal -0."""
    return np.ascontiguousarray(x).view(np.uint8)


def to_bf16(x: Array) -> npt.NDArray[np.uint16]:
    """To nearest even, as bits."""
    b = x.view(np.uint32)
    return ((b + 0x7FFF + ((b >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: npt.NDArray[np.uint16]) -> Array:
    return (x.astype(np.uint32) << 16).view(np.float32)


def run(isa: str, rows: int, record: Callable[[Any], None], threads: int = 1) -> None:
    """What `record` adds to a program, over so many rows."""
    inputs = native.Inputs(max(rows, 1), 1, 1, 1)
    inputs.assign(rows, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    program = native.Program(native.Pool(threads), inputs, isa)
    record(program)
    program.run()


@dataclass
class Rows:
    """[rows, k] in a format, in native memory."""

    rows: int
    k: int
    format: int

    def __post_init__(self) -> None:
        self.stride = native.row_bytes(self.format, self.k)
        self.memory = aligned((self.rows + 1) * self.stride, np.uint8)

    @classmethod
    def of(cls, isa: str, x: Array, format: int) -> Rows:
        made = cls(*x.shape, format)
        run(isa, made.rows, lambda p: p.convert(address(x), made.k, made.k, made.address, format))
        return made

    @property
    def address(self) -> int:
        return address(self.memory)

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """[rows, bytes that mean something]"""
        kp = -self.k % 32 + self.k
        used = {F32: self.k * 4, BF16: kp * 2, Q8_32: kp + kp // 32 * 12, Q8_16: kp + kp // 32 * 20}[self.format]
        return self.memory.reshape(self.rows + 1, self.stride)[: self.rows, :used]

    def values(self) -> Array:
        """[rows, k]; what stands beside the values is checked."""
        raw = self.bytes
        assert (self.memory[self.rows * self.stride :] == 0xFF).all(), "written beyond the rows"
        if self.format == F32:
            return np.ascontiguousarray(raw).view(np.float32)
        found = from_bf16(np.ascontiguousarray(raw).view(np.uint16)) if self.format == BF16 else self._quantized(raw)
        assert (found[:, self.k :] == 0).all(), "padding is zeros"
        return found[:, : self.k]

    def _quantized(self, raw: npt.NDArray[np.uint8]) -> Array:
        kp, group = -self.k % 32 + self.k, 16 if self.format == Q8_16 else 32
        at = np.cumsum([0, kp, kp // 32 * 4, kp // group * 4, kp // group * 4])
        q, scale, scaled, offset = (
            np.ascontiguousarray(raw[:, a:b]).view(dtype)
            for a, b, dtype in zip(at, at[1:], (np.int8, np.float32, np.float32, np.int32), strict=False)
        )
        sums = q.reshape(self.rows, kp // group, group).astype(np.int32).sum(-1)
        each = np.repeat(scale, 32 // group, axis=1)
        np.testing.assert_array_equal(offset, -128 * sums)
        np.testing.assert_array_equal(scaled, each * sums.astype(np.float32))
        return (q.reshape(self.rows, kp // 32, 32) * scale[:, :, None]).reshape(self.rows, kp).astype(np.float32)
