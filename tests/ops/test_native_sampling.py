"""The native sampling kernels of every instruction set: the tokens of the reference, its distribution, and edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import naive_kept, near_a_boundary

from octavo.kernels import registry
from octavo.kernels.reference import sampling
from octavo.kernels.registry import Spec
from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows

native = pytest.importorskip("octavo.kernels.cpu._native", reason="the native kernels are not built")

Floats = npt.NDArray[np.float32]
NEAR_TIES = 1 / 1000
"""Of the rows: where rounding decides, native kernels and the reference may take different tokens."""
SIZES = [1, 2, 3, 15, 16, 17, 63, 64, 65, 100, 1000, 1025, 5001]
each_isa = pytest.mark.parametrize("isa", native.isas())
POOL = native.Pool(2)


@dataclass(frozen=True)
class Row:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    index: int = 0


def draw(isa: str, logits: Floats, rows: Sequence[Row]) -> list[int]:
    """One token for each row of settings; logits [rows, vocab]."""
    assert logits.dtype == np.float32 and logits.flags.c_contiguous and len(logits) == len(rows)
    floats = np.array([(row.temperature, row.top_p, row.min_p) for row in rows], np.float32)
    ints = np.array([(row.top_k, row.seed, row.index) for row in rows], np.int64)
    vocab = logits.shape[1]
    at = logits.ctypes.data, vocab, vocab, list(range(len(rows))), floats.ctypes.data, 3, ints.ctypes.data, 3
    found: list[int] = native.sample_rows(POOL, isa, *at)
    return found


def reference(logits: Floats, rows: Sequence[Row]) -> list[int]:
    temperature, top_k, top_p, min_p, seed, index = zip(*(astuple(row) for row in rows), strict=True)
    f32 = (torch.tensor(x, dtype=torch.float32) for x in (temperature, top_p, min_p))
    temperatures, top_ps, min_ps = f32
    ints = (torch.tensor(x, dtype=torch.int64) for x in (seed, index))
    given_logits = torch.from_numpy(logits.copy())
    of_rows = SamplingRows(temperatures, torch.tensor(top_k), top_ps, min_ps, *ints)
    tokens: list[int] = sampling.sample(given_logits, of_rows).tolist()
    return tokens


def random_logits(rng: np.random.Generator, rows: int, vocab: int) -> Floats:
    logits = (rng.normal(size=(rows, vocab)) * rng.choice([0.01, 0.3, 1, 3, 10, 30])).astype(np.float32)
    form = rng.integers(4)
    if form == 0:
        logits = np.round(logits)  # ties
    elif form == 1:
        logits[:, rng.integers(0, vocab, vocab // 2)] = -np.inf
        logits[:, 0] = 0
    return np.ascontiguousarray(logits)


def random_rows(rng: np.random.Generator, count: int) -> list[Row]:
    return [
        Row(
            temperature=float(rng.choice([0, 1e-6, 0.2, 0.7, 1, 1.5, 50])),
            top_k=int(rng.choice([-1, 0, 0, 1, 2, 10, 50, 700, 2000, 10**6])),
            top_p=float(rng.choice([1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 1, 1])),
            min_p=float(rng.choice([0, 0, 0.05, 0.5, 1])),
            seed=int(rng.integers(-(2**63), 2**63 - 1)),
            index=int(rng.integers(0, 4000)),
        )
        for _ in range(count)
    ]


@each_isa
def test_tokens_are_those_of_the_reference(isa: str) -> None:
    rng = np.random.default_rng(11)
    total = different = away_from_best = 0
    for batch in range(130):
        logits = random_logits(rng, 32, SIZES[batch % len(SIZES)])
        rows = random_rows(rng, 32)
        found, wanted = draw(isa, logits, rows), reference(logits, rows)
        total += 32
        different += sum(a != b for a, b in zip(found, wanted, strict=True))
        away_from_best += int((np.array(found) != logits.argmax(-1)).sum())
    assert different <= total * NEAR_TIES, f"{different} of {total} tokens differ"
    assert away_from_best > total / 5  # most rows have a choice


@each_isa
def test_tokens_are_those_of_the_reference_over_a_whole_vocabulary(isa: str) -> None:
    """With the shapes logits have: few high ones and many low, or nearly flat."""
    rng = np.random.default_rng(5)
    peaky = (rng.normal(size=(24, 49152)) * 2 - 8).astype(np.float32)
    for row in peaky[:16]:
        row[rng.integers(0, 49152, 60)] += np.linspace(0, 14, 60, dtype=np.float32)
    peaky[20:] *= 0.01
    rows = random_rows(rng, 24)
    different = sum(a != b for a, b in zip(draw(isa, peaky, rows), reference(peaky, rows), strict=True))
    assert different == 0, f"{different} of 24 tokens differ"


@each_isa
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 63, 64, 65, 200, 700]))
def test_only_kept_tokens_are_drawn(isa: str, seed: int, vocab: int) -> None:
    rng = np.random.default_rng(seed)
    logits, rows = random_logits(rng, 4, vocab), random_rows(rng, 4)
    for values, row, token in zip(logits.tolist(), rows, draw(isa, logits, rows), strict=True):
        limits = {"temperature": row.temperature, "top_k": row.top_k, "top_p": row.top_p, "min_p": row.min_p}
        if row.temperature == 0 or row.top_k == 1:
            assert token == values.index(max(values))
        elif not near_a_boundary(values, limits):
            assert token in naive_kept(values, **limits)  # type: ignore[arg-type]


@each_isa
@pytest.mark.parametrize(
    "row", [Row(), Row(0.5), Row(2.0), Row(top_k=5), Row(top_p=0.8), Row(min_p=0.1), Row(1.3, 20, 0.9, 0.02)]
)
def test_draws_follow_the_exact_distribution(isa: str, row: Row) -> None:
    """Chi-square at a fixed seed, over the tokens of one request."""
    draws, vocab = 20_000, 150
    logits = (np.random.default_rng(3).normal(size=vocab) * 1.5).astype(np.float32)
    rows = [Row(row.temperature, row.top_k, row.top_p, row.min_p, 42, i) for i in range(draws)]
    found = draw(isa, np.tile(logits, (draws, 1)), rows)
    expected = naive_kept(logits.tolist(), row.temperature, row.top_k, row.top_p, row.min_p)
    counts = np.bincount(found, minlength=vocab)
    assert set(np.flatnonzero(counts)) <= set(expected)
    wanted = np.array([expected.get(i, 0.0) for i in range(vocab)]) * draws
    often = wanted >= 10
    observed = np.append(counts[often], draws - counts[often].sum())
    wanted = np.append(wanted[often], draws - wanted[often].sum())
    keep = wanted > 5
    chi = float(((observed - wanted) ** 2 / np.maximum(wanted, 1e-9))[keep].sum())
    freedom = max(int(keep.sum()) - 1, 1)
    assert chi < freedom + 4.5 * math.sqrt(2 * freedom) + 5, (chi, freedom)


@each_isa
@pytest.mark.parametrize("vocab", SIZES)
def test_argmax_is_the_first_of_the_largest(isa: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits: Floats = np.round(random_logits(rng, 40, vocab) / 3).astype(np.float32)
    assert draw(isa, logits, [Row(0.0)] * 40) == logits.argmax(-1).tolist()
    logits[:] = -np.inf
    places = rng.integers(0, vocab, 40)
    logits[np.arange(40), places] = -3e38
    for row in (Row(0.0), Row(), Row(top_k=3, top_p=0.5, min_p=0.1)):
        assert draw(isa, logits, [row] * 40) == places.tolist()


@each_isa
@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("row", [Row(0.0), Row(), Row(top_k=2, top_p=0.5)])
def test_rows_that_are_not_numbers_are_told(isa: str, vocab: int, row: Row) -> None:
    """A NaN anywhere, an infinite largest, nothing but -inf: -1. Very large numbers: a token."""
    clean = np.random.default_rng(2).normal(size=vocab).astype(np.float32)
    for place in {0, vocab // 2, vocab - 1}:
        for value in (math.nan, math.inf, -math.nan):
            logits = clean.copy()
            logits[place] = value
            assert draw(isa, logits[None], [row]) == [-1], (place, value)
    assert draw(isa, np.full((1, vocab), -np.inf, np.float32), [row]) == [-1]
    huge = np.full((1, vocab), -3e38, np.float32)
    huge[0, -1] = 3e38
    assert draw(isa, huge, [row]) == [vocab - 1]


@each_isa
def test_extremes_of_the_settings(isa: str) -> None:
    logits = np.linspace(0.5, 0, 3000, dtype=np.float32)
    many = np.tile(logits, (4000, 1))

    def reach(row: Row) -> int:
        return max(draw(isa, many, [Row(row.temperature, row.top_k, row.top_p, row.min_p, i) for i in range(4000)]))

    kept = len(naive_kept(logits.tolist(), 1.0, 0, 0.9, 0.0))
    assert 0.97 * kept < reach(Row(top_p=0.9)) <= kept
    assert 2600 < reach(Row(top_k=2700)) < 2700
    assert reach(Row(top_k=3000)) > 2900 and reach(Row(top_k=10**12)) > 2900 and reach(Row(top_p=0.9999999)) > 2900
    assert reach(Row(top_p=1e-30)) == reach(Row(min_p=1.0)) == reach(Row(temperature=1e-38)) == 0
    assert reach(Row(top_k=1, temperature=5.0)) == 0
    assert reach(Row(temperature=1e30)) > 2900


@each_isa
def test_a_token_depends_on_its_row_alone(isa: str) -> None:
    rng = np.random.default_rng(8)
    logits, rows = random_logits(rng, 64, 1000), random_rows(rng, 64)
    together = draw(isa, logits, rows)
    order = rng.permutation(64)
    assert draw(isa, np.ascontiguousarray(logits[order]), [rows[i] for i in order]) == [together[i] for i in order]
    assert [draw(isa, logits[i : i + 1], [rows[i]])[0] for i in range(64)] == together


@each_isa
@pytest.mark.parametrize("vocab", [*SIZES, 49152])
def test_logprobs_and_the_largest_few(isa: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    for count in sorted({0, 1, min(20, vocab), min(900, vocab), min(vocab, 5001)}):
        logits = random_logits(rng, 1, vocab)[0]
        ids = rng.integers(0, vocab, 3)
        chosen, values, top_ids = native.logprobs(isa, logits.ctypes.data, vocab, ids.tolist(), count)
        table = torch.from_numpy(logits).double().log_softmax(-1).numpy()
        order = np.lexsort((np.arange(vocab), -logits))[:count]
        assert list(top_ids) == order.tolist()
        np.testing.assert_allclose(chosen, table[ids], rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(values, table[order], rtol=1e-6, atol=1e-5)
        of_reference = sampling.logprobs(torch.from_numpy(logits)[None], torch.from_numpy(ids[:1]), count)
        np.testing.assert_allclose(chosen[0], float(of_reference[0]), rtol=1e-6, atol=1e-5)


@each_isa
@pytest.mark.parametrize("vocab", SIZES)
def test_penalties_are_the_reference_to_the_bit(isa: str, vocab: int) -> None:
    ops = registry.choose(Spec("cpu", "float32", threads=1, isa=isa), "cpu")
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn((6, vocab), generator=generator) * 5
    counts = torch.randint(0, 4, (8, vocab), generator=generator, dtype=torch.int32)
    counts *= torch.rand((8, vocab), generator=generator) < 0.05
    seen = torch.rand((8, vocab), generator=generator) < 0.02
    places = torch.tensor([3, -1, 0, 7, -1, 5])
    settings_ = torch.randn((3, 6), generator=generator)
    settings_[2] = settings_[2].abs() + 0.5
    expected = logits.clone()
    rows = PenaltyRows(places, counts, seen, *settings_)
    sampling.penalize(expected, rows)
    ops.penalize(logits, rows)
    assert torch.equal(logits, expected)


@each_isa
@pytest.mark.parametrize("vocab", [1, 15, 16, 31, 32, 33, 48, 257, 49152, 49153])
def test_masks(isa: str, vocab: int) -> None:
    """To the bit, bits beyond the vocabulary and NaN in the logits notwithstanding; the row beside is left alone."""
    ops = registry.choose(Spec("cpu", "float32", threads=1, isa=isa), "cpu")
    generator = torch.Generator().manual_seed(vocab)
    allowed = torch.randint(-(2**31), 2**31, (3, -(-vocab // 32)), generator=generator).int()
    allowed[1, ::2], allowed[1, 1::2] = 0, -1
    logits = torch.randn((5, vocab), generator=generator)
    logits[3, ::7] = math.nan
    places = torch.tensor([1, -1, 0, 2, 1])
    expected = logits.clone()
    sampling.mask(expected, places, allowed)
    bits = (allowed[places[2], torch.arange(vocab) // 32] >> torch.arange(vocab) % 32) & 1
    assert torch.equal(expected[2], logits[2].masked_fill(bits == 0, -math.inf))
    assert torch.equal(expected[1], logits[1])
    ops.mask(logits, places, allowed)
    assert torch.equal(logits.view(torch.int32), expected.view(torch.int32))


@each_isa
def test_the_backend_takes_views_and_several_rows(isa: str) -> None:
    """Ops.sample and Ops.logprobs over a part of wider rows."""
    ops = registry.choose(Spec("cpu", "float32", threads=2, isa=isa), "cpu")
    wide = torch.randn((5, 300), generator=torch.Generator().manual_seed(1)) * 4
    logits, count = wide[:, 20:220], torch.arange(5)
    rows = SamplingRows(torch.full((5,), 0.7), count * 7, torch.full((5,), 0.9), torch.zeros(5), count + 3, count)
    assert torch.equal(ops.sample(logits, rows), sampling.sample(logits, rows))
    for num_top in (0, 4):
        for found, wanted in zip(
            ops.logprobs(logits, count * 9, num_top), sampling.logprobs(logits, count * 9, num_top), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-5)
    wide[2, 30], wide[3, 30], wide[4, 20:220] = math.nan, math.inf, -math.inf
    found = ops.sample(logits, rows)
    assert found[2:].tolist() == [-1, -1, -1] and (found[:2] >= 0).all()
    assert torch.equal(found, sampling.sample(logits, rows))


@each_isa
def test_logprobs_of_what_is_no_number_are_no_numbers(isa: str) -> None:
    logits = np.zeros(100, np.float32)
    logits[7] = math.nan
    chosen, values, top_ids = native.logprobs(isa, logits.ctypes.data, 100, [0], 100)
    assert math.isnan(chosen[0]) and all(math.isnan(v) for v in values)
    assert sorted(top_ids) == list(range(100))
