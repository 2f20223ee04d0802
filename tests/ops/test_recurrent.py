"""Convolution and gated delta rule on every backend against Transformers, over ragged batches that are cut anywhere;
on the native one bits that hang on nothing but the row's own tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backends import ISAS, REFERENCE, native, near
from test_reference import make_step, randn
from torch import Tensor
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    causal_conv1d_fn,
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)
from triton_ops import HAS_TRITON, triton_ops

from octavo.kernels.ops import Ops
from octavo.kernels.step import Step

FEW = settings(max_examples=10, deadline=None)
SLOTS = 6


@pytest.fixture(params=["reference", *ISAS, *(["triton"] if HAS_TRITON else [])], scope="module")
def ops(request: pytest.FixtureRequest) -> Ops:
    if request.param == "triton":
        return triton_ops()
    return REFERENCE if request.param == "reference" else native(request.param)


def brief(ops: Ops, lengths: list[int]) -> list[int]:
    """Interpreted kernels take their time."""
    return [length % 6 + 1 for length in lengths[:2]] if ops.name == "triton" else lengths


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@dataclass
class Cut:
    """Sequences run in steps: in each some of them, each with some of its next tokens, in slots of their own."""

    lengths: list[int]
    seed: int

    def steps(self) -> Iterator[tuple[Step, list[tuple[int, int, int]]]]:
        """A step and, of each of its rows, the sequence and its tokens first:last."""
        chance = random.Random(self.seed)
        slots = chance.sample(range(SLOTS), len(self.lengths))
        done = [0] * len(self.lengths)
        while left := [i for i, length in enumerate(self.lengths) if done[i] < length]:
            parts = []
            for i in chance.sample(left, chance.randint(1, len(left))):
                count = chance.choice([1, chance.randint(1, self.lengths[i] - done[i]), self.lengths[i] - done[i]])
                parts.append((i, done[i], done[i] + count))
                done[i] += count
            step = make_step([(last, last - first) for _, first, last in parts], 16)
            yield replace(step, rows=torch.tensor([slots[i] for i, *_ in parts], dtype=torch.int32)), parts


def of_parts(sequences: list[Tensor], parts: list[tuple[int, int, int]]) -> Tensor:
    return torch.cat([sequences[i][first:last] for i, first, last in parts])


def put_back(found: Tensor, outs: list[Tensor], parts: list[tuple[int, int, int]]) -> None:
    at = 0
    for i, first, last in parts:
        outs[i][first:last] = found[at : at + last - first]
        at += last - first


# --- convolution


@dataclass
class Convolved:
    """Sequences of x, as columns of something wider, and their convolution."""

    xs: list[Tensor]
    weight: Tensor  # [k, channels]

    @classmethod
    def make(cls, lengths: list[int], channels: int, k: int) -> Convolved:
        xs = [randn(length, channels, seed=i) for i, length in enumerate(lengths)]
        return cls(xs, randn(k, channels, seed=99))

    def wanted(self) -> list[Tensor]:
        weight = self.weight.t().contiguous()
        return [causal_conv1d_fn(x.t()[None], weight, activation="silu")[0].t() for x in self.xs]

    def run(self, ops: Ops, cut: Cut) -> tuple[list[Tensor], Tensor]:
        """Outputs and the state left behind, which holds anything before."""
        k, channels = self.weight.shape
        state = torch.full((SLOTS, k - 1, channels), 7.0)
        outs = [torch.zeros_like(x) for x in self.xs]
        for step, parts in cut.steps():
            wide = F.pad(of_parts(self.xs, parts), (3, 5), value=5.0)
            put_back(ops.short_conv(wide[:, 3 : 3 + channels], self.weight, state, step), outs, parts)
        return outs, state


@FEW
@given(LENGTHS, st.integers(0, 1 << 20), st.sampled_from([(1, 4), (33, 4), (80, 2), (16, 3)]))
def test_short_conv(ops: Ops, lengths: list[int], seed: int, shape: tuple[int, int]) -> None:
    lengths = brief(ops, lengths)
    case = Convolved.make(lengths, *shape)
    outs, _ = case.run(ops, Cut(lengths, seed))
    for out, wanted in zip(outs, case.wanted(), strict=True):
        near(out, wanted, 1e-5)


# --- delta rule


@dataclass(frozen=True)
class Shape:
    k_heads: int
    v_heads: int
    dk: int
    dv: int


SHAPES = [Shape(1, 1, 16, 16), Shape(2, 4, 16, 32), Shape(2, 2, 32, 16), Shape(1, 3, 24, 20)]


@dataclass
class Ruled:
    """Sequences of q, k, v, g and beta."""

    shape: Shape
    qs: list[Tensor]
    ks: list[Tensor]
    vs: list[Tensor]
    gs: list[Tensor]
    betas: list[Tensor]

    @classmethod
    def make(cls, shape: Shape, lengths: list[int]) -> Ruled:
        def each(seed: int, *width: int) -> list[Tensor]:
            return [randn(length, *width, seed=seed + i) for i, length in enumerate(lengths)]

        qs, ks = ([F.normalize(x, dim=-1) for x in each(seed, shape.k_heads, shape.dk)] for seed in (100, 200))
        gs = [-F.softplus(g - 1) for g in each(400, shape.v_heads)]
        betas = [beta.sigmoid() for beta in each(500, shape.v_heads)]
        return cls(shape, qs, ks, each(300, shape.v_heads, shape.dv), gs, betas)

    def wanted(self, i: int, chunked: bool) -> tuple[Tensor, Tensor]:
        """[tokens, v_heads, dv] of sequence i, and the state after it."""
        rule = torch_chunk_gated_delta_rule if chunked else torch_recurrent_gated_delta_rule
        q, k, v, g, beta = (x[i][None] for x in (self.qs, self.ks, self.vs, self.gs, self.betas))
        out, state = rule(q, k, v, g, beta, output_final_state=True)
        return out[0], state[0]

    def only(self, i: int) -> Ruled:
        return Ruled(self.shape, *([x[i]] for x in (self.qs, self.ks, self.vs, self.gs, self.betas)))

    def run(self, ops: Ops, cut: Cut) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Outputs, and each sequence's state at its end. v is part of something wider."""
        shape = self.shape
        state = torch.full((SLOTS, shape.v_heads, shape.dk, shape.dv), 7.0)
        outs = [torch.zeros_like(v) for v in self.vs]
        slots: dict[int, int] = {}
        for step, parts in cut.steps():
            q, k, v, g, beta = (of_parts(x, parts) for x in (self.qs, self.ks, self.vs, self.gs, self.betas))
            wide = F.pad(v.flatten(1), (4, 4), value=5.0)
            v = wide[:, 4 : 4 + shape.v_heads * shape.dv].unflatten(1, (shape.v_heads, shape.dv))
            put_back(ops.delta_rule(q, k, v, g, beta, state, step), outs, parts)
            slots |= {i: int(slot) for (i, *_), slot in zip(parts, step.rows, strict=True)}
        return outs, {i: state[slot] for i, slot in slots.items()}


@FEW
@given(LENGTHS, st.integers(0, 1 << 20), st.sampled_from(SHAPES), st.booleans())
def test_delta_rule(ops: Ops, lengths: list[int], seed: int, shape: Shape, chunked: bool) -> None:
    lengths = brief(ops, lengths)
    case = Ruled.make(shape, lengths)
    outs, states = case.run(ops, Cut(lengths, seed))
    for i, out in enumerate(outs):
        wanted, state = case.wanted(i, chunked)
        near(out, wanted, 2e-5)
        near(states[i], state, 2e-5)


# --- what is normalized by heads


@pytest.mark.parametrize(("tokens", "heads", "dim"), [(0, 2, 16), (1, 1, 8), (5, 3, 20), (7, 4, 128)])
def test_rms_norm_of_heads(ops: Ops, tokens: int, heads: int, dim: int) -> None:
    wide, weight = randn(tokens, heads * dim + 9, seed=1), randn(dim, seed=2)
    x = wide[:, 4 : 4 + heads * dim].unflatten(1, (heads, dim))
    near(ops.rms_norm(x, weight, 1e-3), x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight, 1e-5)


# --- bits


@pytest.mark.parametrize("isa", ISAS)
@FEW
@given(LENGTHS, st.integers(0, 1 << 20), st.sampled_from([Shape(2, 4, 16, 80), Shape(1, 2, 48, 20)]))
def test_bits_hang_on_nothing_but_the_sequence(isa: str, lengths: list[int], seed: int, shape: Shape) -> None:
    """Not on how it was cut, on who else ran, or on threads."""
    rule, conv = Ruled.make(shape, lengths), Convolved.make(lengths, 300, 4)
    several, one = native(isa, threads=3), native(isa, threads=1)
    outs, states = rule.run(several, Cut(lengths, seed))
    convolved, _ = conv.run(several, Cut(lengths, seed))
    for i, length in enumerate(lengths):
        whole = Cut([length], 0)
        alone, state = rule.only(i).run(one, whole)
        assert torch.equal(alone[0], outs[i]) and torch.equal(state[0], states[i])
        assert torch.equal(Convolved([conv.xs[i]], conv.weight).run(one, whole)[0][0], convolved[i])
