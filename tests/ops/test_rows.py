"""Steps made from a device's own rows: their inputs, attention over page tables with gaps, and what they leave, on
every backend."""

from __future__ import annotations

import math
import random

import pytest
import torch
from test_backends import ISAS, REFERENCE, native, near, no_turn
from test_reference import BLOCKS, randn
from torch import Tensor
from triton_ops import HAS_TRITON, triton_ops

from octavo.kernels.ops import Ops
from octavo.kernels.rows import DeviceRows
from octavo.kernels.step import Step

ROWS, PAGES, BLOCK_SIZE = 9, 6, 8
PADDING = ROWS


@pytest.fixture(params=["reference", *ISAS, *(["triton"] if HAS_TRITON else [])], scope="module")
def ops(request: pytest.FixtureRequest) -> Ops:
    if request.param == "triton":
        return triton_ops()
    return REFERENCE if request.param == "reference" else native(request.param)


def make_rows(seed: int = 0) -> DeviceRows:
    """Requests of different lengths, on pages of their own in random order; the padding's page is the last."""
    draw = random.Random(seed)
    pages = draw.sample(range(BLOCKS - 1), ROWS * PAGES)
    tables = torch.tensor([*pages, *[BLOCKS - 1] * PAGES], dtype=torch.int32).view(1, ROWS + 1, PAGES)
    computed = [draw.randrange(PAGES * BLOCK_SIZE) for _ in range(ROWS)]
    computed[:3] = 0, BLOCK_SIZE, PAGES * BLOCK_SIZE - 1
    return DeviceRows(
        last_token=torch.tensor([*(draw.randrange(1000) for _ in range(ROWS)), 0]),
        num_computed=torch.tensor([*computed, 0], dtype=torch.int32),
        block_tables=tables,
        sampling_ints=torch.randint(-(2**40), 2**40, (ROWS + 1, 3), generator=torch.Generator().manual_seed(seed)),
    )


def tight(step: Step) -> Step:
    """The same step with the page table that the host would gather."""
    counts = [-(-int(context) // step.block_size) for context in step.context_lens]
    starts = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32)
    pages = [step.page_ids[at : at + count] for at, count in zip(step.page_start[:-1].tolist(), counts, strict=True)]
    return Step(
        step.token_ids, step.positions, step.slots, step.query_start, step.context_lens, starts, torch.cat(pages),
        step.logits_index, step.block_size, step.max_query_len, step.max_context_len, step.rows,
    )  # fmt: skip


@pytest.mark.parametrize(
    "rows", [[4], [0, 1, 2], [5, 3, 8, 1], [2, 7, PADDING, PADDING, PADDING], [PADDING], list(range(ROWS))]
)
def test_a_step_is_the_next_token_of_each_row(ops: Ops, rows: list[int]) -> None:
    state = make_rows()
    step = ops.decode_step(torch.tensor(rows, dtype=torch.int32), state, BLOCK_SIZE, 48)
    computed, n = [int(state.num_computed[row]) for row in rows], len(rows)
    assert step.token_ids.tolist() == [int(state.last_token[row]) for row in rows]
    assert step.positions.tolist() == computed
    assert step.rows.tolist() == rows and step.rows.dtype == torch.int32
    pages = [int(state.block_tables[0, row, at // BLOCK_SIZE]) for row, at in zip(rows, computed, strict=True)]
    assert step.slots.tolist() == [p * BLOCK_SIZE + at % BLOCK_SIZE for p, at in zip(pages, computed, strict=True)]
    assert step.query_start.tolist() == list(range(n + 1)) and step.logits_index.tolist() == list(range(n))
    assert step.context_lens.tolist() == [at + 1 for at in computed]
    assert step.page_start[:n].tolist() == [row * PAGES for row in rows] and step.page_start.shape == (n + 1,)
    assert torch.equal(step.page_ids, state.block_tables.flatten())
    assert (step.block_size, step.max_query_len, step.max_context_len, step.tight) == (BLOCK_SIZE, 1, 48, False)
    longs = (step.token_ids, step.positions, step.slots, step.logits_index)
    ints = (step.query_start, step.context_lens, step.page_start, step.page_ids)
    assert {x.dtype for x in longs} == {torch.int64} and {x.dtype for x in ints} == {torch.int32}
    assert all(x.is_contiguous() for x in longs + ints)


@pytest.mark.parametrize("rows", [[0, 1, 2], [5, 3, 8, 1, PADDING, PADDING], [6]])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (7, 2.0)])
def test_attention_over_tables_with_gaps(ops: Ops, rows: list[int], window: int | None, soft_cap: float | None) -> None:
    state = make_rows(1)
    step = ops.decode_step(torch.tensor(rows, dtype=torch.int32), state, BLOCK_SIZE, PAGES * BLOCK_SIZE)
    shape, dtype = ops.kv_page(BLOCK_SIZE, 2, 16)
    kv = randn(2 * BLOCKS, math.prod(shape) * dtype.itemsize // 4, seed=1).view(dtype).view(2, BLOCKS, *shape)
    q, k, v = randn(len(rows), 6, 16, seed=2), randn(len(rows), 2, 16, seed=3), randn(len(rows), 2, 16, seed=4)
    if PADDING in rows:  # written by nobody knows which of its tokens last
        k[rows.index(PADDING) :], v[rows.index(PADDING) :] = k[-1].clone(), v[-1].clone()
    pages = kv.clone()
    q = ops.rope_cache(q, k, v, no_turn(1024, 16), kv, step)
    ops.rope_cache(q, k, v, no_turn(1024, 16), pages, tight(step))
    assert torch.equal(kv, pages)
    found = ops.attention(q, kv, step, 0.25, window, soft_cap)
    wanted = ops.attention(q, kv, tight(step), 0.25, window, soft_cap)
    near(found, wanted, 1e-6)


def test_what_a_step_leaves(ops: Ops) -> None:
    state, rows = make_rows(2), [7, 0, PADDING, 3, PADDING]
    before: list[Tensor] = [x.clone() for x in (state.last_token, state.num_computed, state.sampling_ints)]
    tokens = torch.tensor([11, -1, 13, 14, 15])
    ops.decode_done(torch.tensor(rows, dtype=torch.int32), tokens, state)
    last, computed, ints = before
    last[[7, 0, 3]] = torch.tensor([11, 0, 14])
    computed[[7, 0, 3]] += 1
    ints[[7, 0, 3], 2] += 1
    assert torch.equal(state.last_token, last) and torch.equal(state.num_computed, computed)
    assert torch.equal(state.sampling_ints, ints)
    ops.decode_done(torch.tensor([PADDING], dtype=torch.int32), tokens[:1], state)
    assert torch.equal(state.last_token, last)


def test_more_rows_than_one_program_takes(ops: Ops) -> None:
    n = 300
    state = DeviceRows(
        torch.arange(n + 1), torch.arange(n + 1, dtype=torch.int32) % 8,
        torch.arange(2 * n + 2, dtype=torch.int32).view(1, -1, 2), torch.zeros((n + 1, 3), dtype=torch.int64),
    )  # fmt: skip
    rows = torch.arange(n, dtype=torch.int32).flip(0)
    step = ops.decode_step(rows, state, 4, 8)
    assert torch.equal(step.token_ids, torch.arange(n).flip(0))
    assert torch.equal(step.slots, (2 * step.token_ids + step.positions // 4) * 4 + step.positions % 4)
    ops.decode_done(rows, torch.arange(n), state)
    assert torch.equal(state.last_token[:n], torch.arange(n).flip(0)) and int(state.last_token[n]) == n
    assert state.sampling_ints[:n].tolist() == [[0, 0, 1]] * n and int(state.sampling_ints[n].sum()) == 0
