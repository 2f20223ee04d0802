"""Triton's kernels beyond what test_backends.py asks of every backend: products of quantized weights, the sampler, half
precision. Interpreted on the CPU, or run on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backends import CASES, WEIGHTS, naive_pages, near
from test_layouts import fp8, int4, int8
from test_reference import BLOCKS, make_step, naive_attention, randn
from torch import Tensor
from triton_ops import DEVICE, HAS_TRITON, triton_ops

from octavo.kernels.layouts import Dense, Float8Groups, Int4Groups, Int8Groups, Layout
from octavo.kernels.ops import HeadNorms
from octavo.kernels.reference import norm as reference_norm
from octavo.kernels.reference import sampling as reference
from octavo.kernels.reference.backend import ReferenceOps
from octavo.kernels.rows import DeviceRows
from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows

pytestmark = [
    pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # the interpreter computes lanes that a GPU masks out
]
F32, F16 = torch.float32, torch.float16
FEW = settings(max_examples=6, deadline=None)


# --- products


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize(("tokens", "n", "k"), [(0, 8, 32), (1, 1, 32), (1, 100, 576), (5, 33, 96), (70, 48, 160)])
def test_linear(kind: str, tokens: int, n: int, k: int) -> None:
    weight, ops = WEIGHTS[kind][0](n, k), triton_ops()
    packed = ops.prepare([weight])
    assert packed.shape == weight.shape and packed.nbytes <= max(weight.nbytes, 4 * n * weight.shape[1])
    assert torch.equal(packed.dequantize(F32).cpu(), weight.dequantize(F32))
    x, bias = randn(tokens, weight.shape[1], seed=6), randn(n, seed=7)
    product = x @ weight.dequantize(F32).T
    scale = float((x.norm(dim=1).amax(0) if tokens else torch.ones(1)) * weight.dequantize(F32).norm(dim=1).amax())
    for found, wanted in ((ops.linear(x, packed), product), (ops.linear(x, packed, bias), product + bias)):
        assert found.shape == (tokens, n) and found.dtype == F32
        assert not tokens or (found - wanted).abs().max() <= 1e-5 * scale
    assert torch.equal(ops.logits(x, packed), ops.linear(x, packed))


@pytest.mark.parametrize("kind", ["int8", "fp8 by rows", "int4"])
@pytest.mark.parametrize("k", [4096, 4192])
def test_few_tiles_split_what_they_add_up(kind: str, k: int) -> None:
    weight, ops, x, bias = WEIGHTS[kind][0](70, k), triton_ops(), randn(3, k, seed=6), randn(70, seed=7)
    near(ops.linear(x, ops.prepare([weight]), bias), x @ weight.dequantize(F32).T + bias, 1e-5)


@pytest.mark.parametrize("tokens", [1, 9])
def test_parts_of_several_kinds_are_one_product(tokens: int) -> None:
    ops = triton_ops()
    parts: list[Layout] = [int4(1), int8(2), int8(3), int8(4, 16, F32), fp8(5), Dense(randn(5, 256))]
    packed, x = ops.prepare(parts), randn(tokens, 256, seed=8)
    dense = torch.cat([part.dequantize(F32) for part in parts])
    assert packed.shape == dense.shape and torch.equal(packed.dequantize(F32).cpu(), dense)
    bias = randn(len(dense), seed=9)
    near(ops.linear(x, packed, bias), x @ dense.T + bias, 1e-5)


@pytest.mark.parametrize("kind", ["f32", "int8", "fp8", "int4"])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_half_precision_is_summed_in_f32(kind: str, tokens: int) -> None:
    """2,048 products of about 1 each: in f16 their sum would be off by whole units."""
    weight, ops = WEIGHTS[kind][0](17, 2048), triton_ops(F16)
    x = randn(tokens, 2048, seed=1, dtype=F16)
    packed = ops.prepare([weight])
    wanted = x.double() @ packed.dequantize(F32).cpu().to(F16 if kind == "f32" else F32).double().T
    scale = float(x.double().norm(dim=1).amax() * packed.dequantize(F32).norm(dim=1).amax())
    assert (ops.logits(x, packed) - wanted).abs().max() <= 1e-3 * scale


GROUPS: list[tuple[Callable[[Tensor, Tensor], Layout], int, int]] = [
    (lambda q, s: Float8Groups(q.to(torch.float8_e4m3fn), s), 96, 48),  # cut to 16
    (lambda q, s: Float8Groups(q.to(torch.float8_e4m3fn), s), 2048, 1024),  # cut to 512
    (lambda q, s: Int8Groups(q.to(torch.int8), s), 96, 96),  # the whole row
    (lambda q, s: Float8Groups(q.to(torch.float8_e4m3fn), s), 256, 128),  # larger than a tile
    (lambda q, s: Int4Groups((q[:, ::2].abs() * 5).to(torch.uint8), s, -s), 96, 96),
]


@pytest.mark.parametrize(("make", "k", "group"), GROUPS)
@pytest.mark.parametrize("tokens", [1, 6])
def test_groups_of_other_sizes(make: Callable[[Tensor, Tensor], Layout], k: int, group: int, tokens: int) -> None:
    weight, ops, x = make(randn(20, k) * 40, randn(20, k // group, seed=1)), triton_ops(), randn(tokens, k, seed=2)
    packed = ops.prepare([weight])
    assert torch.equal(packed.dequantize(F32).cpu(), weight.dequantize(F32))
    near(ops.linear(x, packed), x @ weight.dequantize(F32).T, 1e-5)


@pytest.mark.parametrize("kind", ["fp8", "fp8 by rows"])
@pytest.mark.parametrize("tokens", [1, 6])
def test_fp8_weights_are_read_as_bytes_where_a_gpu_has_no_fp8(
    kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, with all values there are: the least and the largest, and those below the normal ones."""
    from octavo.kernels.triton import launch

    if DEVICE == "cuda":
        pytest.skip("the device is what it is")
    weight, ops, x = WEIGHTS[kind][0](20, 256), triton_ops(), randn(tokens, 256, seed=2)
    weight.q[0] = torch.arange(256).to(torch.uint8).where(torch.arange(256) % 128 < 127, 0).view(weight.q.dtype)
    packed, table, ids = ops.prepare([weight]), ops.prepare_table(weight), torch.arange(20)
    wanted = ops.linear(x, packed), ops.embedding(ids, table)
    monkeypatch.setattr(launch, "ASSUMED", 80)
    assert torch.equal(ops.linear(x, packed), wanted[0]) and torch.equal(ops.embedding(ids, table), wanted[1])


# --- rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, F16])
def test_rows_round_once(dtype: torch.dtype) -> None:
    ops = triton_ops(dtype)
    x, residual, weight = randn(5, 96, dtype=dtype), randn(5, 96, seed=1), randn(96, seed=2)
    exact, kept = reference_norm.add_rms_norm(x.float(), residual.clone(), weight, 1e-3)
    found, total = ops.add_rms_norm(x, residual.clone(), weight, 1e-3)
    assert found.dtype == dtype and torch.equal(total, kept)
    near(found.float(), exact, torch.finfo(dtype).eps)
    gate, up = x.float().chunk(2, dim=1)
    near(ops.silu_mul(x).float(), gate * gate.sigmoid() * up, torch.finfo(dtype).eps)


def test_wide_and_narrow_views_are_normalized_by_rows() -> None:
    wide = randn(4, 96)
    near(
        triton_ops().rms_norm(wide[:, :64], torch.ones(64), 1e-5),
        reference_norm.rms_norm(wide[:, :64], torch.ones(64), 1e-5),
        1e-6,
    )


# --- attention


@FEW
@CASES
def test_attention(
    rows: list[tuple[int, int]], block_size: int, kv_heads: int, group: int, head_dim: int, window: int | None,
    soft_cap: float | None,
) -> None:  # fmt: skip
    step, whole = make_step(rows, block_size), make_step([(c, c) for c, _ in rows], block_size)
    k, v = randn(2, len(whole.positions), kv_heads, head_dim, seed=2).unbind(0)
    q, pages = randn(len(step.positions), kv_heads * group, head_dim, seed=1), naive_pages(whole, k, v, block_size)
    found = triton_ops().attention(q, pages, step, 0.3, window, soft_cap)
    near(found, naive_attention(q, pages, step, 0.3, window, soft_cap).float(), 1e-5)


@pytest.mark.parametrize("splits", [(1, 1), (3, 3), (40, 40), (1, 4)])
@pytest.mark.parametrize(
    ("dtype", "kv", "tolerance"), [(F32, F32, 4e-5), (F16, F16, 4e-3), (F16, torch.float8_e4m3fn, 0.1)]
)
def test_attention_over_split_contexts(
    splits: tuple[int, int], dtype: torch.dtype, kv: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.kernels.triton import attention

    monkeypatch.setattr(attention, "decode_splits", lambda *_: splits)
    monkeypatch.setattr(attention, "LEAST_KEYS", 32)
    monkeypatch.setattr(attention, "LONG_KEYS", 128)
    rows, ops = [(450, 1), (129, 1), (5, 1), (40, 17), (2, 2), (1, 1)], triton_ops(dtype, kv)
    step, whole = make_step(rows, 16), make_step([(c, c) for c, _ in rows], 16)
    k, v = randn(2, len(whole.positions), 2, 64, seed=2).to(dtype).unbind(0)
    q = randn(len(step.positions), 6, 64, seed=1).to(dtype)
    pages = naive_pages(whole, k.float(), v.float(), 16).to(kv)
    for window, soft_cap in ((None, None), (140, 2.0)):
        found = ops.attention(q, pages, step, 0.125, window, soft_cap)
        wanted = naive_attention(q, pages.to(F32), step, 0.125, window, soft_cap)
        assert (found.double() - wanted).abs().max() <= tolerance


def test_a_row_is_split_by_its_own_context_alone() -> None:
    """Captured for the longest context there may be, or not; beside whatever rows: the same to the bit. Rows without
    any context give zeros."""
    ops, tables = triton_ops(), torch.arange(BLOCKS, dtype=torch.int32).view(1, 4, 16)
    pages = randn(2, BLOCKS, 32, 1, 16, seed=1)
    q, last = randn(4, 2, 16, seed=2), torch.tensor([510, 300, 0, -1], dtype=torch.int32)
    state = DeviceRows(torch.zeros(4, dtype=torch.int64), last, tables, torch.zeros(4, 3, dtype=torch.int64))

    def attend(rows: list[int], longest: int) -> Tensor:
        step = ops.decode_step(torch.tensor(rows, dtype=torch.int32), state, 32, longest)
        return ops.attention(q[rows], pages, step, 0.25)

    captured = attend([0, 1, 2, 3], 1 << 17)
    assert captured.isfinite().all() and not captured[3].any()
    assert torch.equal(attend([0, 1, 2, 3], 511), captured)
    assert torch.equal(attend([2, 1, 3], 301), captured[[2, 1, 3]])


@given(
    rows=st.integers(1, 600), kv_heads=st.integers(1, 16), context=st.integers(1, 1 << 17), more=st.integers(0, 1 << 17)
)
def test_what_is_captured_splits_as_what_is_not(rows: int, kv_heads: int, context: int, more: int) -> None:
    from octavo.kernels.triton.shapes import LEAST_KEYS, LONG_KEYS, MOST_SPLITS, decode_splits, next_power_of_2

    def parts(rows: int, longest: int) -> int:  # as the kernel does
        few, splits = decode_splits(rows, kv_heads, longest, 132)
        assert 1 <= few <= splits <= MOST_SPLITS
        wanted = max(min(max(context // LEAST_KEYS, 1), few), min(context // LONG_KEYS, splits))
        assert 1 <= wanted <= splits
        return wanted

    assert parts(rows, context) == parts(rows, context + more) == parts(next_power_of_2(rows), 1 << 20)


def test_prefill_finds_its_tiles_among_many_rows() -> None:
    """More rows than are looked at together, most of which are decoded."""
    rows = [(1 + i % 3, 1) for i in range(270)]
    rows[3], rows[258], rows[269] = (40, 37), (33, 33), (3, 2)
    starts = torch.tensor([0, *[new for _, new in rows]]).cumsum(0).to(torch.int32)
    step = make_step([], 16)
    counts = torch.tensor([3] * 270)
    step = replace(
        step, query_start=starts, context_lens=torch.tensor([c for c, _ in rows], dtype=torch.int32),
        page_start=torch.tensor([0, *counts.cumsum(0)], dtype=torch.int32),
        page_ids=torch.randint(BLOCKS, (3 * 270,), dtype=torch.int32), max_query_len=37, max_context_len=40,
        positions=torch.cat([torch.arange(c - new, c) for c, new in rows]),
    )  # fmt: skip
    q, pages = randn(int(starts[-1]), 1, 16, seed=1), randn(2, BLOCKS, 16, 1, 16, seed=2)
    near(triton_ops().attention(q, pages, step, 0.25), naive_attention(q, pages, step, 0.25, None, None).float(), 1e-5)


ROUNDS_FP8 = pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter rounds 0.49 to 0.25: no carry in e4m3")


@pytest.mark.parametrize(
    ("kv", "tolerance"), [(F16, 2**-10), pytest.param(torch.float8_e4m3fn, 2**-4, marks=ROUNDS_FP8)]
)
@pytest.mark.parametrize("rotary_dim", [128, 48])
def test_norms_of_heads_in_half_precision(rotary_dim: int, kv: torch.dtype, tolerance: float) -> None:
    step, ops = make_step([(20, 3), (9, 9), (17, 1)], 16), triton_ops(F16, kv)
    q, k, v = randn(len(step.positions), 17 + 2 * 8, 128, seed=1).to(F16).split([17, 8, 8], dim=1)
    table = torch.outer(torch.arange(32.0), torch.rand(rotary_dim // 2)).repeat(1, 2)
    table = torch.cat((table[:, : rotary_dim // 2].cos(), table[:, rotary_dim // 2 :].sin()), dim=-1)
    norms = HeadNorms(randn(128, seed=2), randn(128, seed=3), 1e-6)
    pages, exact_pages = torch.zeros(2, BLOCKS, 16, 8, 128, dtype=kv), torch.zeros(2, BLOCKS, 16, 8, 128)
    found = ops.rope_cache(q, k, v, table, pages, step, norms)
    exact = ReferenceOps(F32).rope_cache(q.float(), k.float(), v.float(), table, exact_pages, step, norms)
    assert found.dtype == F16 and torch.allclose(found.float(), exact, rtol=2**-10, atol=1e-5)
    assert torch.allclose(pages.float(), exact_pages, rtol=tolerance, atol=2**-9)


def test_values_beyond_fp8_are_its_largest() -> None:
    step, ops = make_step([(2, 2)], 16), triton_ops(F16, torch.float8_e4m3fn)
    k = torch.full((2, 1, 16), 1000.0, dtype=F16)
    pages = torch.zeros(2, BLOCKS, 16, 1, 16, dtype=torch.float8_e4m3fn)
    ops.rope_cache(k, k, -k, torch.cat((torch.ones(8, 8), torch.zeros(8, 8)), dim=-1), pages, step)
    assert pages.float().amax() == 448 and pages.float().amin() == -448


# --- the sampler


def draw(logits: Tensor, chunk: int = 256, candidates: int = 16, **rows: Tensor) -> tuple[Tensor, Tensor]:
    """(our tokens, the reference's)."""
    from octavo.kernels.triton import sampling

    n = logits.shape[0]
    neutral = {
        "temperature": torch.ones(n), "top_k": torch.zeros(n, dtype=torch.int64), "top_p": torch.ones(n),
        "min_p": torch.zeros(n), "seeds": torch.arange(n), "indices": torch.zeros(n, dtype=torch.int64),
    }  # fmt: skip
    settings_ = {**neutral, **rows}
    on_device = SamplingRows(**{name: x.to(DEVICE) for name, x in settings_.items()})
    found = sampling.sample(logits.to(DEVICE), on_device, chunk=chunk, candidates=candidates)
    return found.cpu(), reference.sample(logits.clone(), SamplingRows(**settings_))


@FEW
@given(
    seed=st.integers(0, 1000),
    vocab=st.sampled_from([70, 600]),
    spread=st.sampled_from([0.3, 3.0, 8.0]),
)
def test_tokens_are_those_of_the_reference(seed: int, vocab: int, spread: float) -> None:
    """Flat rows among them, whose thresholds lie below all candidates."""
    torch.manual_seed(seed)

    def choice(*values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), (6,))]

    found, wanted = draw(
        torch.randn(6, vocab) * spread,
        temperature=choice(0, 0.5, 1, 1.7),
        top_k=choice(0, -1, 1, 5, 40, vocab).long(),
        top_p=choice(1.0, 0.9, 0.5, 0.99),
        min_p=choice(0, 0, 0.05, 0.3),
        seeds=torch.randint(-(2**62), 2**62, (6,)),
        indices=torch.randint(0, 100, (6,)),
    )
    assert torch.equal(found, wanted)


def test_rows_that_are_not_numbers_are_told_and_ties_go_to_the_first() -> None:
    logits = randn(6, 1100)
    logits[0, 5] = torch.nan
    logits[1] = -torch.inf
    logits[2, 1099] = torch.inf
    logits[3, :1050] = -torch.inf
    logits[4, [700, 20, 1000]] = 9.0
    found, wanted = draw(logits, temperature=torch.tensor([1.0, 1, 0, 1, 0, 0]))
    assert torch.equal(found, wanted) and found[:3].tolist() == [-1, -1, -1] and found[4] == 20


def test_numbers_that_are_none_are_no_candidates() -> None:
    """A GPU's own NaN has all bits set but the sign: the largest of all keys."""
    logits = randn(4, 1100)
    logits.view(torch.int32)[0, 300:900] = 0x7FFFFFFF
    logits.view(torch.int32)[1, 7] = -1
    found, wanted = draw(logits, top_k=torch.tensor([40, 40, 40, 0]), top_p=torch.full((4,), 0.9))
    assert torch.equal(found[2:], wanted[2:]) and found[:2].tolist() == [-1, -1]


@pytest.mark.parametrize("vocab", [31, 1000])
def test_masks_and_penalties_are_the_reference(vocab: int) -> None:
    ops = triton_ops()
    logits, places = randn(5, vocab), torch.tensor([2, -1, 0, 1, -1])
    allowed = torch.randint(-(2**31), 2**31 - 1, (3, -(-vocab // 32)), dtype=torch.int32)
    found, wanted = logits.clone(), logits.clone()
    ops.mask(found, places, allowed)
    reference.mask(wanted, places, allowed)
    assert torch.equal(found, wanted)
    counts, seen = torch.randint(0, 3, (3, vocab), dtype=torch.int32), torch.rand(3, vocab) < 0.3
    rows = PenaltyRows(places, counts, seen, torch.rand(5), torch.rand(5), 1 + torch.rand(5))
    found, wanted = logits.clone(), logits.clone()
    ops.penalize(found, rows)
    reference.penalize(wanted, rows)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("vocab", "num_top"), [(31, 0), (31, 31), (1000, 4), (1000, 20)])
def test_logprobs_are_those_of_the_reference(vocab: int, num_top: int) -> None:
    from octavo.kernels.triton import logprobs

    logits, tokens = randn(5, vocab), torch.tensor([0, 1, 30, 7, 29])
    logits[1, 1:25], logits[2] = -torch.inf, -3e38
    logits[2, 30] = 3e38
    chosen, top, ids = (
        x.cpu() for x in logprobs.logprobs(logits.to(DEVICE), tokens.to(DEVICE), num_top, chunk=max(64, num_top))
    )
    wanted = reference.logprobs(logits.clone(), tokens, num_top)
    assert torch.allclose(chosen, wanted[0], atol=1e-5) and torch.allclose(top, wanted[1], atol=1e-5)
    assert ids.shape == (5, num_top) and (num_top == 0 or torch.equal(ids[[0, 3, 4]], wanted[2][[0, 3, 4]]))
    assert all(len(set(row)) == num_top for row in ids.tolist()), "each once"
    equal = logits.new_zeros(1, 100)
    assert logprobs.logprobs(equal.to(DEVICE), tokens[:1].to(DEVICE), 3, 64)[2].tolist() == [[0, 1, 2]]
    equal[0, 70] = torch.nan
    assert all(x.isnan().all() for x in logprobs.logprobs(equal.to(DEVICE), tokens[:1].to(DEVICE), 3, 64)[:2])
