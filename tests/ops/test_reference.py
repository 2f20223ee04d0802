"""Every operation of the reference backend against plain loops over its definition (sampling has its own file)."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.kernels.layouts import Dense, Int4Groups, Int8Groups
from octavo.kernels.ops import HeadNorms
from octavo.kernels.reference.backend import ReferenceOps
from octavo.kernels.step import Step

F32, BF16 = torch.float32, torch.bfloat16
BLOCKS = 64
FEW = settings(max_examples=40, deadline=None)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_step(rows: list[tuple[int, int]], block_size: int, seed: int = 0) -> Step:
    """rows: (context length after the step, new tokens); every row on pages of its own, in random order."""
    pages = list(range(BLOCKS))
    random.Random(seed).shuffle(pages)
    positions, slots, starts, page_starts, page_ids = [], [], [0], [0], []
    for context, new in rows:
        own = [pages.pop() for _ in range(-(-context // block_size))]
        for position in range(context - new, context):
            positions.append(position)
            slots.append(own[position // block_size] * block_size + position % block_size)
        starts.append(starts[-1] + new)
        page_ids += own
        page_starts.append(len(page_ids))
    return Step(
        token_ids=torch.zeros(len(positions), dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int64),
        slots=torch.tensor(slots, dtype=torch.int64),
        query_start=torch.tensor(starts, dtype=torch.int32),
        context_lens=torch.tensor([context for context, _ in rows], dtype=torch.int32),
        page_start=torch.tensor(page_starts, dtype=torch.int32),
        page_ids=torch.tensor(page_ids, dtype=torch.int32),
        logits_index=torch.tensor([], dtype=torch.int64),
        block_size=block_size,
        max_query_len=max((new for _, new in rows), default=0),
        max_context_len=max((context for context, _ in rows), default=0),
        rows=torch.arange(len(rows), dtype=torch.int32),
    )


def naive_attention(
    q: Tensor, kv: Tensor, step: Step, scale: float, window: int | None, soft_cap: float | None
) -> Tensor:
    """One query, one head, at a time, in f64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // kv.shape[3]
    for row in range(step.num_rows):
        pages = step.page_ids[step.page_start[row] : step.page_start[row + 1]].long()
        keys, values = (x[pages].reshape(-1, *kv.shape[3:]).double() for x in kv)
        for token in range(int(step.query_start[row]), int(step.query_start[row + 1])):
            last = int(step.positions[token])
            first = 0 if window is None else max(0, last + 1 - window)
            for head in range(q.shape[1]):
                scores = keys[first : last + 1, head // group] @ q[token, head].double() * scale
                if soft_cap is not None:
                    scores = soft_cap * torch.tanh(scores / soft_cap)
                out[token, head] = scores.softmax(0) @ values[first : last + 1, head // group]
    return out.flatten(1)


ROWS = st.lists(
    st.tuples(st.integers(1, 40), st.one_of(st.just(1), st.integers(1, 40))).map(lambda row: (max(row), row[1])),
    min_size=1,
    max_size=6,
)


@FEW
@given(
    rows=ROWS,
    block_size=st.sampled_from([8, 16]),
    kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 3, 5]),
    window=st.sampled_from([None, None, 1, 7, 100]),
    soft_cap=st.sampled_from([None, None, 2.0]),
)
def test_attention(
    rows: list[tuple[int, int]], block_size: int, kv_heads: int, group: int, window: int | None, soft_cap: float | None
) -> None:
    step = make_step(rows, block_size)
    q = randn(len(step.positions), kv_heads * group, 16, seed=1)
    kv = randn(2, BLOCKS, block_size, kv_heads, 16, seed=2)
    found = ReferenceOps(F32).attention(q, kv, step, 0.3, window, soft_cap)
    assert found.shape == (len(step.positions), kv_heads * group * 16)
    wanted = naive_attention(q, kv, step, 0.3, window, soft_cap)
    assert torch.allclose(found.double(), wanted, atol=1e-5)


def test_attention_of_long_rows_in_groups_and_chunks() -> None:
    """Several groups of decodes and a prefill of several chunks, in one step."""
    rows = [(700, 1), (300, 290), (5, 1), (1, 1), (260, 1), (16, 2)]
    step = make_step(rows, 32)
    q, kv = randn(len(step.positions), 4, 8, seed=1), randn(2, BLOCKS, 32, 2, 8, seed=2)
    for window in (None, 50):
        found = ReferenceOps(F32).attention(q, kv, step, 0.5, window)
        assert torch.allclose(found.double(), naive_attention(q, kv, step, 0.5, window, None), atol=1e-5)


exact_products = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="which products round alike is known for MKL and for oneDNN with bf16 instructions only",
)


@exact_products
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_attention_of_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    ops, kv = ReferenceOps(dtype), randn(2, BLOCKS, 16, 3, 64, seed=2, dtype=dtype)
    rows = [(600, 1), (40, 1), (200, 200), (33, 1)]
    together = make_step(rows, 16)
    q = randn(len(together.positions), 9, 64, seed=1, dtype=dtype)
    found = ops.attention(q, kv, together, 0.125)
    pages = together.page_ids
    for row, (context, new) in enumerate(rows):
        tokens = slice(int(together.query_start[row]), int(together.query_start[row + 1]))
        own = pages[together.page_start[row] : together.page_start[row + 1]]
        for first in range(0, new, 77):
            last = min(first + 77, new)
            alone = make_step([(context - new + last, last - first)], 16)
            alone.page_ids.copy_(own[: len(alone.page_ids)])
            part = ops.attention(q[tokens][first:last], kv, alone, 0.125)
            # In f32 the library sums a long row of keys in parts whose size depends on how many there are.
            tolerance = 1e-6 if dtype == F32 else 0.0
            assert torch.allclose(part, found[tokens][first:last], rtol=0.0, atol=tolerance)


@exact_products
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_linear_of_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    ops = ReferenceOps(dtype)
    for rows, columns in ((96, 64), (576, 1536)):
        weight, x = Dense(randn(rows, columns, dtype=dtype)), randn(130, columns, seed=1, dtype=dtype)
        whole = ops.linear(x, weight)
        for count in (1, 2, 3, 5, 8, 13, 32, 129):
            for first in range(0, 130 - count, 40):
                assert torch.equal(ops.linear(x[first : first + count], weight), whole[first : first + count])


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 17, 200])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(num_tokens: int, with_bias: bool) -> None:
    x, weight, bias = randn(num_tokens, 37), randn(11, 37, seed=1), randn(11, seed=2) if with_bias else None
    found = ReferenceOps(F32).linear(x, Dense(weight), bias)
    wanted = (x.double() @ weight.double().T) + (0 if bias is None else bias.double())
    assert found.shape == (num_tokens, 11)
    assert torch.allclose(found.double(), wanted, atol=1e-4)


def quantized(kind: str) -> Int8Groups | Int4Groups:
    scales = randn(6, 2, seed=1).half()
    generator = torch.Generator().manual_seed(2)
    if kind == "int8":
        return Int8Groups(torch.randint(-127, 128, (6, 64), generator=generator, dtype=torch.int8), scales)
    packed = torch.randint(0, 256, (6, 32), generator=generator, dtype=torch.uint8)
    return Int4Groups(packed, scales, randn(6, 2, seed=3).half())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_prepare_and_embedding_of_quantized_matrices(kind: str) -> None:
    weight, ops = quantized(kind), ReferenceOps(BF16)
    prepared = ops.prepare([weight])
    assert isinstance(prepared, Dense)
    assert prepared.data.dtype == BF16
    assert torch.equal(prepared.data, weight.dequantize(F32).to(BF16))
    assert ops.prepare([prepared]).data is prepared.data
    ids = torch.tensor([5, 0, 0, 3])
    wanted = weight.dequantize(BF16)[ids]
    assert torch.equal(ops.embedding(ids, weight), wanted)
    assert torch.equal(ops.embedding(ids, prepared), wanted)
    assert ops.embedding(ids[:0], weight).shape == (0, 64)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (5, 33), (40, 576)])
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, residual, weight = randn(*shape, dtype=dtype), randn(*shape, seed=1), randn(shape[1], seed=2)
    ops = ReferenceOps(dtype)

    def naive(values: Tensor) -> Tensor:
        rows = [[v / math.sqrt(sum(u * u for u in row) / len(row) + 1e-3) for v in row] for row in values.tolist()]
        return torch.tensor(rows, dtype=torch.float64).reshape(shape) * weight.double()

    tolerance = {"atol": 1e-5} if dtype == F32 else {"rtol": 2**-7, "atol": 1e-3}
    assert torch.allclose(ops.rms_norm(x, weight, 1e-3).double(), naive(x), **tolerance)
    total = x.float() + residual
    normed, kept = ops.add_rms_norm(x.clone(), residual.clone(), weight, 1e-3)
    assert torch.equal(kept, total)
    assert normed.dtype == dtype
    assert torch.allclose(normed.double(), naive(total), **tolerance)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_logits_are_not_rounded_to_bf16(dtype: torch.dtype) -> None:
    ops, x, weight = ReferenceOps(dtype), randn(3, 64, seed=1, dtype=dtype), randn(50, 64, seed=2)
    found = ops.logits(x, ops.prepare([Dense(weight)]))
    assert found.dtype == F32
    exact = x.double() @ weight.to(dtype).double().T
    fused = dtype == F32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert torch.allclose(found.double(), exact, atol=2e-3 if fused else 0.2)


@pytest.mark.parametrize("rotary_dim", [4, 6, 12])
def test_rope_cache(rotary_dim: int) -> None:
    """q and k turned as complex numbers, k and v found at their slots, every other slot untouched."""
    head_dim, ops = 12, ReferenceOps(F32)
    step = make_step([(20, 3), (9, 9), (17, 1)], 8)
    fused = randn(len(step.positions), 5 + 2 * 2, head_dim, seed=1)
    q, k, v = fused[:, :5], fused[:, 5:7], fused[:, 7:]
    angles = torch.outer(torch.arange(32.0), 1.0 / 10.0 ** torch.arange(rotary_dim // 2))
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    kv = randn(2, BLOCKS, 8, 2, head_dim, seed=3)
    before = kv.clone()
    found = ops.rope_cache(q, k, v, cos_sin, kv, step)

    def naive(x: Tensor) -> Tensor:
        half = rotary_dim // 2
        turned = torch.complex(x[..., :half], x[..., half:rotary_dim])
        turned = turned * torch.polar(torch.ones(()), angles[step.positions])[:, None]
        return torch.cat((turned.real, turned.imag, x[..., rotary_dim:]), dim=-1)

    assert found.is_contiguous()
    assert torch.allclose(found, naive(q), atol=1e-5)
    flat, untouched = kv.flatten(1, 2), torch.ones(BLOCKS * 8, dtype=torch.bool)
    untouched[step.slots] = False
    assert torch.allclose(flat[0, step.slots], naive(k), atol=1e-5)
    assert torch.equal(flat[1, step.slots], v)
    assert torch.equal(flat[:, untouched], before.flatten(1, 2)[:, untouched])


def test_nothing_is_rounded_between_the_norm_of_heads_and_their_turn() -> None:
    step, ops = make_step([(20, 20)], 8), ReferenceOps(BF16)
    q, k, v = (randn(20, heads, 16, seed=heads, dtype=BF16) for heads in (4, 2, 3))
    v = v[:, :2]
    table = torch.cat([torch.outer(torch.arange(32.0), torch.rand(8)).cos() for _ in range(2)], dim=-1)
    norms = HeadNorms(randn(16, seed=5), randn(16, seed=6), 1e-3)
    kv, exact_kv = torch.zeros(2, BLOCKS, 8, 2, 16, dtype=BF16), torch.zeros(2, BLOCKS, 8, 2, 16)
    found = ops.rope_cache(q, k, v, table, kv, step, norms)
    exact = ReferenceOps(F32).rope_cache(q.float(), k.float(), v.float(), table, exact_kv, step, norms)
    assert found.dtype == BF16 and torch.equal(found, exact.to(BF16)) and torch.equal(kv, exact_kv.to(BF16))


def test_two_rotary_tables_in_one_step() -> None:
    step, ops = make_step([(5, 5)], 8), ReferenceOps(F32)
    q, k, v = randn(5, 1, 4), randn(5, 1, 4, seed=1), randn(5, 1, 4, seed=2)
    tables = [torch.cat((torch.full((8, 2), c), torch.full((8, 2), s)), dim=-1) for c, s in ((1.0, 0.0), (0.0, 1.0))]
    kv = torch.zeros(2, BLOCKS, 8, 1, 4)
    assert torch.equal(ops.rope_cache(q, k, v, tables[0], kv, step), q)
    quarter = torch.cat((-q[..., 2:], q[..., :2]), dim=-1)
    assert torch.equal(ops.rope_cache(q, k, v, tables[1], kv, step), quarter)
    assert torch.equal(ops.rope_cache(q, k, v, tables[0], kv, step), q)


@pytest.mark.parametrize("num_tokens", [0, 1, 7])
def test_silu_mul_and_gather_rows(num_tokens: int) -> None:
    ops, x = ReferenceOps(F32), randn(num_tokens, 10)
    wanted = [[g / (1 + math.exp(-g)) * u for g, u in zip(row[:5], row[5:], strict=True)] for row in x.tolist()]
    assert torch.allclose(ops.silu_mul(x), torch.tensor(wanted).reshape(num_tokens, 5), atol=1e-6)
    index = torch.arange(num_tokens).flip(0)
    assert torch.equal(ops.gather_rows(x, index), x.flip(0))


def test_silu_mul_matches_transformers_in_bfloat16() -> None:
    x = randn(9, 64, dtype=BF16)
    assert torch.equal(ReferenceOps(BF16).silu_mul(x), F.silu(x[:, :32]) * x[:, 32:])
