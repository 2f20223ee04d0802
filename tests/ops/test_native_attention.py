"""rope_cache and attention of every instruction set and kind of KV page, against numpy in f64 and against the reference
backend; and that a query's result depends, to the bit, on nothing but its own q, k and v."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels.reference.backend import ReferenceOps
from octavo.kernels.step import Step

native = pytest.importorskip("octavo.kernels.cpu._native", reason="the native kernels are not built")

Array = npt.NDArray[np.float32]
F32, BF16, INT8, F16 = range(4)
KINDS = {F32: "f32", BF16: "bf16", INT8: "int8", F16: "f16"}
# Of the largest and of the mean error. K and V rounded to bf16, f16 or int8 (and q to bf16) are rounded in f64() too,
# but for a few that lie between two values: what is left is mostly the rounding of weights.
TOLERANCE = {F32: (3e-5, 2e-6), BF16: (3e-2, 1e-3), INT8: (5e-2, 1e-3), F16: (3e-3, 4e-6)}
EPS = 0.1  # of the norms of heads: large, so that one left out shows
POISON = 0xFF  # bytes of fresh pages: NaN as f32, bf16 and f16, NaN scales of int8
each_isa = pytest.mark.parametrize("isa", native.isas())
each_kind = pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())


@dataclass(frozen=True)
class Shape:
    kv_heads: int = 3
    group: int = 3
    head_dim: int = 64
    rotary_dim: int = 64
    block_size: int = 16
    window: int = 0
    soft_cap: float = 0.0
    scale: float = 0.125
    norms: bool = False

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group


def shapes() -> st.SearchStrategy[Shape]:
    def whole(head_dim: int, half_rotary: bool, **rest: Any) -> Shape:
        rotary = head_dim // 4 * 2 if half_rotary else head_dim
        return Shape(head_dim=head_dim, rotary_dim=rotary, scale=head_dim**-0.5, **rest)

    return st.builds(
        whole,
        kv_heads=st.integers(1, 3),
        group=st.sampled_from([1, 2, 3, 4, 7, 8]),
        head_dim=st.sampled_from([64, 2, 34, 80, 96, 128, 256]),
        half_rotary=st.booleans(),
        block_size=st.sampled_from([8, 16, 32, 128, 256]),
        window=st.sampled_from([0, 0, 1, 5, 40, 130]),
        soft_cap=st.sampled_from([0, 0, 5, 30]),
        norms=st.booleans(),
    )


def address(x: npt.NDArray[np.generic]) -> int:
    return int(x.ctypes.data)


@dataclass
class Sequences:
    """Some sequences, their pages in one pool, and the two operations over any part of them."""

    shape: Shape
    kind: int
    isa: str
    lengths: Sequence[int]
    seed: int = 0
    threads: int = 1
    q: list[Array] = field(init=False)
    k: list[Array] = field(init=False)
    v: list[Array] = field(init=False)

    def __post_init__(self) -> None:
        s, rng = self.shape, np.random.default_rng(self.seed)

        def normal(n: int, heads: int) -> Array:
            return rng.standard_normal((n, heads, s.head_dim), dtype=np.float32) * np.float32(1.5)

        self.q = [normal(n, s.heads) for n in self.lengths]
        self.k = [normal(n, s.kv_heads) for n in self.lengths]
        self.v = [normal(n, s.kv_heads) for n in self.lengths]
        counts = [-(-n // s.block_size) for n in self.lengths]
        self.page_start = np.cumsum([0, *counts]).astype(np.int32)
        blocks = int(self.page_start[-1]) + 2
        self.page_ids = rng.permutation(blocks).astype(np.int32)[: self.page_start[-1]].copy()
        page = native.kv_page_bytes(self.kind, s.block_size, s.kv_heads, s.head_dim)
        self.memory = np.full(2 * blocks * page + 64, POISON, np.uint8)
        self.pages = (address(self.memory) + 63 & ~63, self.kind, blocks, s.block_size, s.kv_heads, s.head_dim)
        angles = np.arange(max(self.lengths, default=0) + 1)[:, None] / 10000 ** (np.arange(s.rotary_dim // 2) / 32)
        self.cos_sin = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        self.norms = rng.uniform(0.5, 1.5, (2, s.head_dim)).astype(np.float32)  # of q and of k

    def step(
        self, rows: Sequence[int], starts: Sequence[int], ends: Sequence[int]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Tokens starts[i] .. ends[i] of sequence rows[i]; the arrays of a Step by name."""
        size, spans = self.shape.block_size, list(zip(rows, starts, ends, strict=True))
        positions = np.concatenate([np.arange(a, b) for _, a, b in spans])
        tables = [self.page_ids[self.page_start[r] : self.page_start[r] + -(-b // size)] for r, _, b in spans]
        slots = np.concatenate(
            [t[np.arange(a, b) // size].astype(np.int64) * size + np.arange(a, b) % size
             for t, (_, a, b) in zip(tables, spans, strict=True)]
        )  # fmt: skip
        return {
            "token_ids": np.zeros(len(positions), np.int64),
            "positions": positions.astype(np.int64),
            "slots": slots.astype(np.int64),
            "query_start": np.cumsum([0, *(b - a for _, a, b in spans)]).astype(np.int32),
            "context_lens": np.array(ends, np.int32),
            "page_start": np.cumsum([0, *(len(t) for t in tables)]).astype(np.int32),
            "page_ids": np.concatenate(tables).astype(np.int32),
            "logits_index": np.zeros(0, np.int64),
        }

    def run(self, rows: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> tuple[Array, list[Array]]:
        """→ rotated q [tokens, heads, head_dim] and the attention's output by row."""
        s, arrays = self.shape, self.step(rows, starts, ends)
        spans = list(zip(rows, starts, ends, strict=True))
        # As slices of one fused projection: strides larger than a row.
        qkv = np.concatenate(
            [np.concatenate([self.q[r][a:b], self.k[r][a:b], self.v[r][a:b]], axis=1) for r, a, b in spans]
        )
        tokens, width, q_width = len(qkv), qkv[0].size, s.heads * s.head_dim
        kv_width = s.kv_heads * s.head_dim
        rotated, out = (np.full((tokens, s.heads, s.head_dim), np.nan, np.float32) for _ in range(2))
        inputs = native.Inputs(tokens, len(rows), len(arrays["page_ids"]), s.block_size)
        inputs.assign(tokens, len(rows), 0, s.block_size, *(address(a) for a in arrays.values()))
        program = native.Program(native.Pool(self.threads), inputs, self.isa)
        q = address(qkv)
        norms = (address(self.norms[0]), address(self.norms[1]), EPS) if s.norms else (0, 0, 0.0)
        program.rope_cache(
            q, width, q + 4 * q_width, width, q + 4 * (q_width + kv_width), width, s.heads, address(self.cos_sin),
            s.rotary_dim, *norms, *self.pages, address(rotated), q_width,
        )  # fmt: skip
        program.attention(
            address(rotated), q_width, s.heads, *self.pages, s.scale, s.window, s.soft_cap, address(out), q_width
        )
        program.run()
        return rotated, np.split(out, arrays["query_start"][1:-1])

    def whole(self) -> list[Array]:
        return self.run(range(len(self.lengths)), [0] * len(self.lengths), self.lengths)[1]

    def f64(self, row: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Rotated q and the output of one whole sequence, K and V rounded as the pages hold them."""
        s = self.shape
        q, k = (x[row].astype(np.float64) for x in (self.q, self.k))
        if s.norms:
            q, k = (
                x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPS) * weight
                for x, weight in zip((q, k), self.norms, strict=True)
            )
        q, k = (rotate(x, self.cos_sin[: len(x)].astype(np.float64)) for x in (q, k))
        k, v = rounded(k, self.kind), rounded(self.v[row], self.kind)
        k, v = (np.repeat(x, s.group, axis=1) for x in (k, v))
        unit = s.scale / s.soft_cap if s.soft_cap else s.scale / np.log(2)
        factor = rounded(q * unit, BF16) / unit if (self.kind, self.isa) == (BF16, "avx512") else q
        scores = np.einsum("qhd,khd->hqk", factor, k) * s.scale
        if s.soft_cap:
            scores = s.soft_cap * np.tanh(scores / s.soft_cap)
        at = np.arange(len(q))
        hidden = at[None] > at[:, None]
        if s.window:
            hidden |= at[None] <= at[:, None] - s.window
        scores[:, hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return q, np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)


def rotate(x: npt.NDArray[np.float64], cos_sin: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    half = cos_sin.shape[1] // 2
    cos, sin, out = cos_sin[:, None, :half], cos_sin[:, None, half:], x.copy()
    first, second = x[..., :half], x[..., half : 2 * half]
    out[..., :half], out[..., half : 2 * half] = first * cos - second * sin, second * cos + first * sin
    return out


def rounded(x: npt.NDArray[np.generic], kind: int) -> npt.NDArray[np.float64]:
    f32 = x.astype(np.float32)
    if kind == BF16:
        return np.asarray(torch.from_numpy(f32).bfloat16().double().numpy(), np.float64)
    if kind == F16:
        return f32.astype(np.float16).astype(np.float64)
    if kind == INT8:
        scale = np.abs(f32).max(axis=-1, keepdims=True) / np.float32(127)
        return np.asarray(np.rint(f32 / scale) * scale.astype(np.float64), np.float64)
    return f32.astype(np.float64)


def assert_same_bits(found: Array, wanted: Array) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


@each_isa
@each_kind
@settings(max_examples=25)
@given(shape=shapes(), lengths=st.lists(st.integers(1, 300), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_against_f64(isa: str, kind: int, shape: Shape, lengths: list[int], seed: int) -> None:
    s = Sequences(shape, kind, isa, lengths, seed)
    rotated, outs = s.run(range(len(lengths)), [0] * len(lengths), lengths)
    for row, (q, out) in enumerate(zip(np.split(rotated, np.cumsum(lengths)[:-1]), outs, strict=True)):
        wanted_q, wanted = s.f64(row)
        np.testing.assert_allclose(q, wanted_q, atol=1e-5)
        largest, mean = TOLERANCE[kind]
        np.testing.assert_allclose(out, wanted, atol=largest)
        # One value of K that rounds the other way is seen by every token behind it: the more the fewer there are.
        assert np.abs(out - wanted).mean() < mean + largest / (4 * len(out))


@each_isa
@each_kind
@settings(max_examples=15)
@given(
    shape=shapes(),
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_chunking_gives_the_same_bits(
    isa: str, kind: int, shape: Shape, lengths: list[int], seed: int, data: st.DataObject
) -> None:
    wanted = Sequences(shape, kind, isa, lengths, seed).whole()
    s, done = Sequences(shape, kind, isa, lengths, seed), [0] * len(lengths)  # pages fresh: nothing is left of above
    while rows := [row for row, length in enumerate(lengths) if done[row] < length]:
        chunk = data.draw(st.sampled_from([1, 3, 32, 33, 150]))
        starts = [done[row] for row in rows]
        ends = [min(lengths[row], done[row] + chunk) for row in rows]
        for row, start, end, out in zip(rows, starts, ends, s.run(rows, starts, ends)[1], strict=True):
            assert_same_bits(out, wanted[row][start:end])
            done[row] = end


@each_isa
@each_kind
@pytest.mark.parametrize("block_size", [8, 16, 256])
def test_one_by_one_alone_or_together_on_any_threads(isa: str, kind: int, block_size: int) -> None:
    """Decode steps of one row are cut by partitions when threads are many, those of many rows are not."""
    shape, lengths = Shape(block_size=block_size, kv_heads=1), [517, 140, 1, 129]
    everything = Sequences(shape, kind, isa, lengths)
    wanted = everything.whole()
    for threads in (1, 3):
        everything.threads = threads
        for back in (1, 2):  # the last tokens again: what they write is there already
            rows = [row for row, length in enumerate(lengths) if length >= back]
            starts = [lengths[row] - back for row in rows]
            outs = everything.run(rows, starts, [start + 1 for start in starts])[1]
            for row, start, out in zip(rows, starts, outs, strict=True):
                assert_same_bits(out, wanted[row][start : start + 1])
                assert_same_bits(everything.run([row], [start], [start + 1])[1][0], out)


@each_isa
@pytest.mark.parametrize("kind", [F32, BF16, F16], ids=["f32", "bf16", "f16"])
def test_against_the_reference_backend(isa: str, kind: int) -> None:
    s = Sequences(Shape(window=100, soft_cap=20.0), kind, isa, [150, 37])
    shape = s.shape
    arrays = {name: torch.from_numpy(x) for name, x in s.step([0, 1], [0, 0], s.lengths).items()}
    step = Step(
        **arrays, block_size=shape.block_size, max_query_len=150, max_context_len=150,
        rows=torch.arange(2, dtype=torch.int32),
    )  # fmt: skip
    q, k, v = (torch.from_numpy(np.concatenate(x)) for x in (s.q, s.k, s.v))
    ops = ReferenceOps(torch.float32)
    kv = torch.zeros(2, s.pages[2], shape.block_size, shape.kv_heads, shape.head_dim)
    rotated = ops.rope_cache(q, k, v, torch.from_numpy(s.cos_sin), kv, step)
    wanted = ops.attention(rotated, kv, step, shape.scale, shape.window, shape.soft_cap)
    found = np.concatenate(s.whole()).reshape(wanted.shape)
    tolerance = {F32: 1e-5, BF16: 3e-2, F16: 4e-3}[kind]  # K and V are rounded here and not there
    np.testing.assert_allclose(found, wanted.numpy(), atol=tolerance)


@each_isa
@each_kind
def test_scores_far_apart_and_equal_ones(isa: str, kind: int) -> None:
    """The largest of scores that differ by thousands takes all; equal ones give the mean."""
    shape = Shape(rotary_dim=2, head_dim=64)
    s = Sequences(shape, kind, isa, [200])
    s.q[0][:], s.k[0][:] = 0, 0
    s.q[0][:, :, 9], s.k[0][:, :, 9] = 1000, np.arange(200)[:, None]
    np.testing.assert_allclose(s.whole()[0], np.repeat(rounded(s.v[0], kind), shape.group, axis=1), atol=2e-4)
    s = Sequences(shape, kind, isa, [200])
    s.q[0][:] = 0
    value = rounded(s.v[0], kind)
    mean = np.cumsum(value, axis=0) / np.arange(1, 201)[:, None, None]
    np.testing.assert_allclose(s.whole()[0], np.repeat(mean, shape.group, axis=1), atol=1e-5 if kind != INT8 else 2e-4)


@each_isa
@each_kind
def test_what_is_not_finite_shows_in_its_own_row_only(isa: str, kind: int) -> None:
    s = Sequences(Shape(), kind, isa, [150, 150, 150])
    clean = s.whole()
    s.k[0][149, 1, 5] = np.nan
    s.v[1][149, 2, 7] = np.inf
    found = s.whole()
    assert_same_bits(found[2], clean[2])
    assert np.isnan(found[0][149, 3:6]).all() and np.isfinite(found[0][149, [0, 1, 2, 6, 7, 8]]).all()
    assert not np.isfinite(found[1][149, 6:9, 7]).any() and np.isfinite(found[1][149, :6]).all()


@each_isa
@each_kind
def test_pages_of_a_longer_sequence_can_be_used_again(isa: str, kind: int) -> None:
    """What earlier owners left in the pages, be it NaN, is not seen."""
    shape = Shape(block_size=32)
    s = Sequences(shape, kind, isa, [45])
    wanted = Sequences(shape, kind, isa, [45]).whole()[0]
    dirty = Sequences(shape, kind, isa, [64])
    dirty.k[0][:], dirty.v[0][:] = np.nan, np.inf
    dirty.memory, dirty.pages, dirty.page_ids = s.memory, s.pages, s.page_ids
    dirty.whole()
    assert_same_bits(s.whole()[0], wanted)
