"""Memory, matrices and steps for benchmarks that call the native kernels directly. Used by kernels.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octavo.kernels.cpu import _native

ALIGNMENT = 64
GROUP = 32
KINDS = ("int4", "int8", "bf16", "f32")
"""Of matrices: groups of 32 with f16 scales (and minimums), or dense."""
FORMATS = {"f32": 0, "bf16": 1, "int8": 2, "int4": 2}
"""The format of rows (csrc/types.h) that a matrix of a kind is multiplied with."""


def last_level_cache() -> int:
    """Bytes; 32 MiB where the system does not say."""
    for index in (3, 2):
        try:
            text = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").read_text().strip()
            return int(text.removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return 32 << 20


@dataclass
class Arrays:
    """Keeps what native code points to. One per case."""

    seed: int = 0
    _kept: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def keep(self, array: np.ndarray[Any, Any]) -> int:
        """→ its address."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def aligned(self, nbytes: int) -> int:
        """→ the address of zeros that were written: pages never written are all one page, always in cache."""
        address = self.keep(np.full(nbytes + ALIGNMENT, 0, dtype=np.uint8))
        return address + -address % ALIGNMENT

    def normal(self, rows: int, width: int) -> int:
        """→ the address of [rows, width] f32, aligned."""
        raw = np.zeros(rows * width * 4 + ALIGNMENT, dtype=np.uint8)
        skip = -int(raw.ctypes.data) % ALIGNMENT
        raw[skip : skip + rows * width * 4].view(np.float32)[:] = self._random.standard_normal(rows * width, np.float32)
        return self.keep(raw) + skip

    def rows(self, pool: _native.Pool, isa: str, rows: int, k: int, form: int) -> int:
        """→ the address of random rows in a format."""
        out = self.aligned(rows * _native.row_bytes(form, k))
        program = _native.Program(pool, self.step(rows, 1, 1), isa)
        program.convert(self.normal(rows, k), k, k, out, form)
        program.run()
        return out

    def matrices(self, kind: str, n: int, k: int, nbytes: int) -> list[_native.Matrix]:
        """As many copies of one random matrix as take `nbytes` together, at least two."""
        make = getattr(self, f"_{kind}")(n, k)
        first = make()
        return [first, *(make() for _ in range(max(1, -(-nbytes // first.nbytes) - 1)))]

    def _int4(self, n: int, k: int) -> Any:
        packed = self._random.integers(0, 256, n * k // 2, dtype=np.uint8)
        scales, minimums = (np.full(n * k // GROUP, value, dtype=np.float16) for value in (0.01, -0.08))
        addresses = [int(each.ctypes.data) for each in (packed, scales, minimums)]
        return lambda keep=(packed, scales, minimums): _native.Matrix.int4(*addresses, False, GROUP, n, k)

    def _int8(self, n: int, k: int) -> Any:
        q = self._random.integers(-127, 128, n * k, dtype=np.int8)
        scales = np.full(n * k // GROUP, 0.001, dtype=np.float16)
        return lambda keep=(q, scales): _native.Matrix.int8(q.ctypes.data, scales.ctypes.data, False, GROUP, n, k)

    def _bf16(self, n: int, k: int) -> Any:
        bits = (self._random.standard_normal(n * k, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return lambda: _native.Matrix.bf16(bits.ctypes.data, n, k)

    def _f32(self, n: int, k: int) -> Any:
        values = self._random.standard_normal(n * k, np.float32)
        return lambda: _native.Matrix.f32(values.ctypes.data, n, k)

    def step(self, rows: int, new: int, context: int, block_size: int = 16) -> _native.Inputs:
        """`rows` rows with `new` new tokens each, after which each has `context`; pages of their own; all sampling."""
        pages = -(-context // block_size)
        tokens = rows * new
        positions = np.tile(np.arange(context - new, context, dtype=np.int64), rows)
        first_page = np.repeat(np.arange(rows, dtype=np.int64) * pages, new)
        slots = (first_page + positions // block_size) * block_size + positions % block_size
        arrays = (
            np.zeros(tokens, np.int64),
            positions,
            slots,
            np.arange(0, tokens + 1, new, dtype=np.int32),
            np.full(rows, context, np.int32),
            np.arange(0, rows * pages + 1, pages, dtype=np.int32),
            np.arange(rows * pages, dtype=np.int32),
            np.arange(new - 1, tokens, new, dtype=np.int64),
        )
        inputs = _native.Inputs(tokens, rows, rows * pages, block_size)
        inputs.assign(tokens, rows, rows, block_size, *(self.keep(array) for array in arrays))
        return inputs
