"""The sampling operations against a naive per-row oracle, their distribution, and the independence of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.kernels.reference import sampling
from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows


def naive_kept(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """id → probability after temperature → top_k → top_p → min_p, by sorting and plain floats."""
    scaled = [x / temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    if 0 < top_k < len(order):
        order = [i for i in order if scaled[i] >= scaled[order[top_k - 1]]]
    weight = {i: math.exp(scaled[i] - scaled[order[0]]) for i in order}
    if top_p < 1:
        total, reached, last = sum(weight.values()), 0.0, order[0]
        for i in order:
            if reached >= top_p * total:
                break
            reached, last = reached + weight[i], i
        order = [i for i in order if scaled[i] >= scaled[last]]
    order = [i for i in order if weight[i] >= min_p]
    total = sum(weight[i] for i in order)
    return {i: weight[i] / total for i in order}


def draw(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seeds: Tensor | None = None,
    indices: Tensor | None = None,
) -> Tensor:
    n = logits.shape[0]
    rows = SamplingRows(
        torch.full((n,), temperature),
        torch.full((n,), top_k),
        torch.full((n,), top_p),
        torch.full((n,), min_p),
        torch.arange(n) if seeds is None else seeds,
        torch.zeros(n, dtype=torch.int64) if indices is None else indices,
    )
    return sampling.sample(logits, rows)


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3},
    ],
)
@pytest.mark.parametrize("by_seed", [True, False])
def test_draws_follow_the_exact_distribution(settings_: dict[str, float], by_seed: bool) -> None:
    """Chi-square at a fixed seed; over seeds (different requests) and over indices (tokens of one request)."""
    draws, vocab = 20_000, 150
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 1.5
    ids = torch.arange(draws)
    fixed = torch.full((draws,), 42)
    seeds, indices = (ids, fixed) if by_seed else (fixed, ids)
    got = draw(row.expand(draws, -1), seeds=seeds, indices=indices, **settings_)  # type: ignore[arg-type]
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **settings_}
    expected = naive_kept(row.tolist(), **full)  # type: ignore[arg-type]
    counts = np.bincount(got.numpy(), minlength=vocab)
    assert set(np.flatnonzero(counts)) <= set(expected)
    common = [i for i, p in expected.items() if p * draws >= 10]
    rest = 1 - sum(expected[i] for i in common)
    observed = np.array([*counts[common], draws - counts[common].sum()])
    wanted = np.array([*(expected[i] for i in common), rest]) * draws
    keep = wanted > 5
    chi = float((((observed - wanted) ** 2)[keep] / wanted[keep]).sum())
    freedom = max(int(keep.sum()) - 1, 1)
    assert chi < freedom + 4.5 * math.sqrt(2 * freedom) + 5, (chi, freedom)


def test_noise_of_ids_is_uncorrelated() -> None:
    keys = sampling._mix(torch.arange(4000)).unsqueeze(-1)
    noise = sampling._exponential(keys, torch.arange(40))
    assert abs(float(noise.mean()) - 1) < 0.01
    assert abs(float(noise.var()) - 1) < 0.03
    correlation = np.corrcoef(noise.numpy().T) - np.eye(40)
    assert np.abs(correlation).max() < 0.08


@st.composite
def batches(draw_: st.DrawFn) -> tuple[Tensor, list[dict[str, float]]]:
    vocab = draw_(st.sampled_from([1, 2, 63, 64, 65, 200, 1500]))
    n = draw_(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw_(st.integers(0, 2**31)))
    spread = draw_(st.sampled_from([0.0, 0.3, 3.0, 30.0]))
    logits = torch.randn((n, vocab), generator=generator) * spread
    if draw_(st.booleans()):
        logits = logits.round()  # ties
    rows = [
        {
            "temperature": draw_(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 1.7, 100.0])),
            "top_k": draw_(st.sampled_from([-1, 0, 1, 2, 10, 600, 10**6])),
            "top_p": draw_(st.sampled_from([1e-6, 0.31, 0.73, 0.97, 1.0])),
            "min_p": draw_(st.sampled_from([0.0, 0.07, 0.5, 1.0])),
        }
        for _ in range(n)
    ]
    return logits, rows


def columns(rows: list[dict[str, float]]) -> list[Tensor]:
    kinds = (("temperature", torch.float32), ("top_k", torch.int64), ("top_p", torch.float32), ("min_p", torch.float32))
    return [torch.tensor([row[name] for row in rows], dtype=dtype) for name, dtype in kinds]


def near_a_boundary(logits: list[float], row: dict[str, float]) -> bool:
    """The oracle's f64 and the operation's f32 may differ where a cut falls on a value to within rounding."""
    small = {**row, "top_p": row["top_p"] - 1e-5 if row["top_p"] < 1 else 1.0, "min_p": row["min_p"] * (1 - 1e-4)}
    large = {**row, "top_p": min(row["top_p"] + 1e-5, 1.0), "min_p": min(row["min_p"] * (1 + 1e-4), 1.0)}
    return set(naive_kept(logits, **small)) != set(naive_kept(logits, **large))  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(batches(), st.integers(-(2**63), 2**63 - 1))
def test_only_kept_tokens_are_drawn_and_rows_are_independent(
    batch: tuple[Tensor, list[dict[str, float]]], seed: int
) -> None:
    logits, rows = batch
    n = len(rows)
    seeds = torch.full((n,), seed)
    indices = torch.arange(n)
    got = sampling.sample(logits.clone(), SamplingRows(*columns(rows), seeds, indices))
    for i, row in enumerate(rows):
        values = logits[i].tolist()
        if row["temperature"] == 0 or row["top_k"] == 1:
            assert got[i] == values.index(max(values))
        elif not near_a_boundary(values, row):
            assert int(got[i]) in naive_kept(values, **row)  # type: ignore[arg-type]
        alone_row = SamplingRows(*columns([row]), seeds[i : i + 1], indices[i : i + 1])
        alone = sampling.sample(logits[i : i + 1].clone(), alone_row)
        assert alone[0] == got[i]


@pytest.mark.parametrize(("vocab", "draws"), [(3000, 4000), (12_000, 1500)])
def test_a_nucleus_wider_than_the_candidates_is_exact(vocab: int, draws: int) -> None:
    row = torch.linspace(0.5, 0, vocab)
    got = draw(row.expand(draws, -1), top_p=0.9)
    kept = naive_kept(row.tolist(), 1.0, 0, 0.9, 0.0)
    assert len(kept) > max(n for n in (*sampling.CANDIDATES, 0) if n < vocab)
    assert set(got.tolist()) <= set(kept)
    assert int(got.max()) > 0.97 * len(kept)
    limit = vocab * 9 // 10
    assert int(draw(row.expand(draws, -1), top_k=limit).max()) in range(limit * 97 // 100, limit)


def test_same_seed_and_index_same_token_whatever_stands_around() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((64, 1000), generator=generator)
    seeds = torch.arange(64) % 7
    indices = torch.arange(64) % 5
    all_at_once = draw(logits, seeds=seeds, indices=indices, top_p=0.95)
    order = torch.randperm(64, generator=generator)
    assert torch.equal(draw(logits[order], seeds=seeds[order], indices=indices[order], top_p=0.95), all_at_once[order])
    flat = torch.zeros((4, 1000))
    same = draw(flat, seeds=torch.tensor([5, 5, 6, 5]), indices=torch.tensor([9, 9, 9, 8]))
    assert same[0] == same[1] != same[2] and same[3] != same[0]


def test_extreme_logits_and_temperatures_stay_sane() -> None:
    row = torch.tensor([[3e38, -3e38, 0.0, 3e38], [-torch.inf, 1.0, -torch.inf, -torch.inf], [1.0, 1.0, 1.0, 0.99]])
    for temperature in (1e-38, 1e-3, 100.0):
        got = draw(row, temperature=temperature)
        assert got[0] in (0, 3) and got[1] == 1 and (temperature > 1 or got[2] < 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([1, 5, 130]))
def test_penalize_against_the_definition(seed: int, n: int, vocab: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((n, vocab), generator=generator) * 5
    counts = torch.randint(0, 4, (n + 2, vocab), generator=generator, dtype=torch.int32)
    counts *= torch.rand((n + 2, vocab), generator=generator) < 0.3
    seen = torch.rand((n + 2, vocab), generator=generator) < 0.3
    places = torch.randperm(n + 2, generator=generator)[:n] - 1  # a row without a place is left alone
    presence = torch.rand(n, generator=generator) * 4 - 2
    frequency = torch.rand(n, generator=generator) * 4 - 2
    repetition = torch.rand(n, generator=generator) * 2 + 0.1
    expected = logits.clone()
    for i, place in enumerate(places.tolist()):
        for j in range(vocab if place >= 0 else 0):
            x, count = float(logits[i, j]), int(counts[place, j])
            if count or seen[place, j]:
                x = x / float(repetition[i]) if x > 0 else x * float(repetition[i])
            expected[i, j] = x - float(frequency[i]) * count - float(presence[i]) * (count > 0)
    sampling.penalize(logits, PenaltyRows(places, counts, seen, presence, frequency, repetition))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_logprobs_against_log_softmax(num_top: int) -> None:
    logits = torch.randn((6, 90), generator=torch.Generator().manual_seed(0)) * 4
    ids = torch.arange(6) * 7
    chosen, values, top_ids = sampling.logprobs(logits, ids, num_top)
    table = logits.double().log_softmax(-1)
    torch.testing.assert_close(chosen.double(), table[torch.arange(6), ids], rtol=0, atol=2e-6)
    assert values.shape == top_ids.shape == (6, num_top)
    best = table.sort(-1, descending=True)
    torch.testing.assert_close(values.double(), best.values[:, :num_top], rtol=0, atol=2e-6)
    assert torch.equal(top_ids, best.indices[:, :num_top])
