"""A mixture of experts on every backend against loops over its definition: skewed and empty experts, one token, all
forms of weights."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backends import WEIGHTS, isa, native, needs_native, ops
from test_reference import randn
from torch import Tensor
from triton_ops import DEVICE, HAS_TRITON, triton_ops

from octavo.kernels.layouts import Dense, Layout
from octavo.kernels.ops import Ops

__all__ = ["isa", "ops"]  # the fixtures: each backend, or instruction set of the native one, in turn

F32, F16 = torch.float32, torch.float16
FEW = settings(max_examples=5, deadline=None)
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes lanes that a GPU masks out


# --- routing


def routed(logits: Tensor, k: int, renormalize: bool) -> tuple[list[list[float]], list[list[int]]]:
    weights, ids = [], []
    for row in logits.double().softmax(-1).tolist():
        order = sorted(range(len(row)), key=lambda expert: (-row[expert], expert))[:k]
        total = sum(row[expert] for expert in order) if renormalize else 1.0
        ids.append(order)
        weights.append([row[expert] / total for expert in order])
    return weights, ids


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(
    ("tokens", "experts", "k"), [(0, 4, 2), (1, 8, 1), (5, 8, 2), (7, 60, 4), (3, 128, 8), (2, 3, 3)]
)
def test_routing(ops: Ops, tokens: int, experts: int, k: int, renormalize: bool) -> None:
    logits = 3 * randn(tokens, experts)
    weights, ids = ops.route(logits, k, renormalize)
    wanted, order = routed(logits, k, renormalize)
    assert ids.dtype == torch.int32 and weights.dtype == F32 and ids.shape == weights.shape == (tokens, k)
    assert ids.tolist() == order
    assert torch.allclose(weights, torch.tensor(wanted).view(tokens, k), rtol=1e-5, atol=1e-7)


def test_of_equal_experts_the_first_are_taken(ops: Ops) -> None:
    logits = torch.zeros(2, 6)
    logits[1, [1, 4, 5]] = 2.0
    _, ids = ops.route(logits, 4, True)
    assert ids.tolist() == [[0, 1, 2, 3], [1, 4, 5, 0]]


def test_masked_experts_have_no_weight_and_no_number_is_no_index(ops: Ops) -> None:
    logits = torch.full((3, 6), -torch.inf)
    logits[0, 3] = 1.0
    logits[1] = torch.nan
    logits[2] = torch.tensor([1.0, torch.nan, 2, 3, 4, 5])
    weights, ids = ops.route(logits, 3, True)
    assert weights[0].tolist() == [1, 0, 0] and ids[0, 0] == 3
    assert weights[1:].isnan().all()
    for row in ids.tolist():
        assert len(set(row)) == 3 and all(0 <= expert < 6 for expert in row)


# --- experts


def mixture(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    out = torch.zeros_like(x, dtype=torch.float64)
    for token in range(len(x)):
        for weight, expert in zip(weights[token].tolist(), ids[token].tolist(), strict=True):
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            out[token] += weight * (down[expert].double() @ (gate * gate.sigmoid() * up))
    return out


def check(
    ops: Ops, weights: list[list[Layout]], downs: list[list[Layout]], ids: Tensor, dtype: torch.dtype, tolerance: float
) -> None:
    gate_up, down = ops.prepare_experts(weights), ops.prepare_experts(downs)
    dense = torch.stack([torch.cat([part.dequantize(F32) for part in parts]) for parts in weights])
    dense_down = torch.stack([torch.cat([part.dequantize(F32) for part in parts]) for parts in downs])
    assert gate_up.shape == dense.shape and down.shape == dense_down.shape and down.nbytes > 0
    assert dtype != F32 or torch.equal(gate_up.dequantize(F32).cpu(), dense)
    x = randn(len(ids), dense.shape[2], seed=3, dtype=dtype)
    shares = randn(*ids.shape, seed=4).abs()
    found, wanted = ops.experts(x, shares, ids, gate_up, down), mixture(x, shares, ids, dense, dense_down)
    assert found.dtype == dtype and found.shape == wanted.shape
    assert not len(ids) or (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def dense(experts: int, n: int, k: int) -> list[list[Layout]]:
    """Each of two parts, as gate and up are."""
    return [[Dense(part) for part in randn(n, k, seed=expert).chunk(2)] for expert in range(experts)]


CHOICES = {
    "all of one expert": torch.full((20, 1), 2),
    "skewed": torch.tensor([[0, 1]] * 18 + [[0, 4]]),
    "each another": torch.arange(5).view(5, 1),
    "one token": torch.tensor([[3, 0, 4]]),
    "all experts": torch.stack([torch.arange(5).roll(i) for i in range(3)]),
    "none": torch.zeros(0, 2),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_experts(ops: Ops, kind: str) -> None:
    check(ops, dense(5, 36, 48), dense(5, 48, 18), CHOICES[kind].int(), F32, 1e-5)


def test_an_expert_twice_for_a_token_counts_twice(ops: Ops) -> None:
    check(ops, dense(3, 8, 16), dense(3, 16, 4), torch.tensor([[1, 1], [0, 1]]).int(), F32, 1e-5)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_forms_of_weights(ops: Ops, kind: str) -> None:
    make, tolerance = WEIGHTS[kind]

    def listed(n: int, k: int) -> list[list[Layout]]:
        whole = make(3 * n, k)  # three experts of n rows
        return [[whole.take_rows(torch.arange(n) + n * expert)] for expert in range(3)]

    first = listed(64, 32)
    down = [[make(first[0][0].shape[1], 32)]] * 3
    inner = down[0][0].shape[1]
    ids = torch.tensor([[0, 2], [2, 1], [2, 0]] * 6).int()
    exact = getattr(ops, "name", "") in ("reference", "triton")
    check(ops, listed(2 * inner, 32), down, ids, F32, 1e-5 if exact else 8 * max(tolerance, 1e-5))


@needs_triton
def test_experts_of_several_forms_become_dense() -> None:
    make = WEIGHTS["int8"][0]
    mixed: list[list[Layout]] = [[make(16, 32), Dense(randn(16, 32))], [make(16, 32), make(16, 32)]]
    check(triton_ops(), mixed, dense(2, 32, 16), torch.tensor([[0, 1], [1, 0]]).int(), F32, 1e-5)


def smaller(weight: Layout) -> Layout:
    """So that what is between the products stays within f16."""
    parts = {"data", "scales", "minimums"}
    assert is_dataclass(weight) and not isinstance(weight, type)
    return replace(weight, **{f.name: getattr(weight, f.name) / 64 for f in fields(weight) if f.name in parts})


@needs_triton
@pytest.mark.parametrize("kind", ["f32", "int8", "int4", "fp8"])
def test_half_precision(kind: str) -> None:
    make = WEIGHTS[kind][0]
    gate_up, down = [[smaller(make(64, 64))]] * 2, [[smaller(make(64, 32))]] * 2
    check(triton_ops(F16), gate_up, down, torch.tensor([[0, 1]] * 5).int(), F16, 2**-7)


@needs_triton
@FEW
@given(
    seed=st.integers(0, 1000), tokens=st.integers(1, 70), experts=st.sampled_from([1, 3, 17]), k=st.integers(1, 8),
    size=st.sampled_from([16, 32]),
)  # fmt: skip
def test_blocks_hold_every_choice_once(seed: int, tokens: int, experts: int, k: int, size: int) -> None:
    from octavo.kernels.triton.moe import make_blocks

    torch.manual_seed(seed)
    ids = (torch.rand(tokens, k) ** 3 * experts).int()
    blocks = make_blocks(ids.to(DEVICE), experts, size)
    order, flat = blocks.order.tolist(), ids.flatten().tolist()
    seen: list[int] = []
    assert order == sorted(range(tokens * k), key=lambda choice: (flat[choice], choice))
    for expert, first, end in zip(blocks.expert.tolist(), blocks.first.tolist(), blocks.end.tolist(), strict=True):
        if expert >= 0:
            places = range(first, min(first + size, end))
            assert places and all(flat[order[place]] == expert for place in places)
            seen += places
    assert seen == list(range(tokens * k))


@needs_native
@pytest.mark.parametrize("k", [1, 3])
def test_tokens_in_rounds_are_what_each_is_alone(isa: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, quantized or not, whatever other tokens chose."""
    mixture = pytest.importorskip("octavo.kernels.cpu.mixture")
    for kind in ("f32", "int4"):
        ops, make = native(isa, "bfloat16", threads=3), WEIGHTS[kind][0]
        whole = make(5 * 64, 96)
        gate_up = ops.prepare_experts([[whole.take_rows(torch.arange(64) + 64 * e)] for e in range(5)])
        down = ops.prepare_experts([[make(whole.shape[1], 32)]] * 5)
        x, shares = randn(130, whole.shape[1], seed=3), randn(130, k, seed=4)
        ids = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(i))[:k] for i in range(130)]).int()
        ids[:60] = torch.arange(k)  # one with many tokens
        found = ops.experts(x, shares, ids, gate_up, down)
        monkeypatch.setattr(mixture, "MOST_TOKENS", 7)
        assert torch.equal(ops.experts(x, shares, ids, gate_up, down), found)
        monkeypatch.undo()
        for row in (0, 59, 60, 129):
            one = slice(row, row + 1)
            assert torch.equal(ops.experts(x[one], shares[one], ids[one], gate_up, down), found[one])


@needs_triton
def test_more_choices_than_a_program_looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.kernels.triton import moe

    monkeypatch.setattr(moe, "_CHOICES", 16)
    check(triton_ops(), dense(3, 8, 16), dense(3, 16, 4), torch.randint(3, (50, 2)).int(), F32, 1e-5)
