"""A step's inputs are defined once, by `worker.step.gather`: what native code gathers of the permanent rows, and what a
device makes of its own rows, is the same, in every cache group, windows or not, drafts or not."""

from __future__ import annotations

import random
from dataclasses import fields

import numpy as np
import pytest
import torch
from test_backends import ISAS, native
from test_rows import tight
from test_worker import BACKENDS
from triton_ops import HAS_TRITON, triton_ops

from octavo.kernels.recorded import Runs
from octavo.kernels.registry import Spec, choose
from octavo.kernels.step import Step
from octavo.worker.batch import Batch
from octavo.worker.device_rows import make_rows
from octavo.worker.step import gather

ROWS, LENGTH, BLOCK, VOCAB = 6, 90, 8, 500
WINDOWS: list[list[int | None]] = [[None], [None, 20], [7, None, 33]]


def random_batch(pick: random.Random, windows: list[int | None]) -> Batch:
    """Rows at any place of their sequences; what a window has left behind is 0, as the planner leaves it."""
    batch = Batch(ROWS, LENGTH, BLOCK, windows)
    for row in range(ROWS):
        length = pick.randint(1, LENGTH - 4)
        computed = pick.choice([length - 1, pick.randrange(length), 0])
        batch.num_tokens[row], batch.num_computed[row] = length, computed
        batch.token_ids[row, :length] = [pick.randrange(VOCAB) for _ in range(length)]
        batch.num_blocks[row] = count = -(-LENGTH // BLOCK)
        for table, window in zip(batch.block_tables, windows, strict=True):
            left = max(computed - window + 1, 0) // BLOCK if window else 0
            table[row, :count] = [0] * left + [pick.randrange(1, 200) for _ in range(count - left)]
    return batch


def random_runs(pick: random.Random, batch: Batch) -> Runs:
    """Of some rows in any order: a chunk, all that is left, or that and a draft."""
    runs = Runs([], [], [])
    for row in pick.sample(range(ROWS), pick.randint(1, ROWS)):
        if pick.random() < 0.3:
            batch.draft(row, draft := [pick.randrange(VOCAB) for _ in range(pick.randint(1, 3))])
        else:
            draft = []
        left = int(batch.num_tokens[row] - batch.num_computed[row])
        whole = bool(draft) or pick.random() < 0.6
        runs.rows.append(row)
        runs.counts.append(left if whole else pick.randint(1, left))
        runs.samples.append(len(draft) + 1 if whole else 0)
    return runs


def same(found: Step, wanted: Step) -> None:
    for field in fields(Step):
        if field.name in ("on_host", "others"):
            continue
        mine, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(theirs, torch.Tensor):
            assert mine.dtype == theirs.dtype and mine.tolist() == theirs.tolist(), field.name
        else:
            assert mine == theirs, field.name
    assert len(found.others) == len(wanted.others)
    for mine, theirs in zip(found.others, wanted.others, strict=True):
        same(mine, theirs)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native kernels are not built")
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_native_code_gathers_the_same(windows: list[int | None]) -> None:
    from octavo.kernels.cpu.host import step_of
    from octavo.kernels.cpu.record import _bound

    for seed in range(60):
        pick = random.Random(seed)
        batch = random_batch(pick, windows)
        rows = batch.permanent(torch.zeros(ROWS, 3), torch.zeros(ROWS, 3, dtype=torch.int64))
        inputs = _bound(rows, ROWS * LENGTH, BLOCK)
        for _ in range(2):  # arrays are used again
            runs = random_runs(pick, batch)
            inputs.gather(runs.rows, runs.counts, runs.samples)
            same(step_of(inputs), gather(batch, runs))
            for row in range(ROWS):
                batch.num_tokens[row] = min(batch.num_tokens[row], LENGTH - 4)
                batch.num_computed[row] = min(batch.num_computed[row], batch.num_tokens[row] - 1)


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
@pytest.mark.parametrize("backend", ["reference", *ISAS[:1], *(["triton"] if HAS_TRITON else [])])
def test_a_device_makes_the_same_of_its_own_rows(backend: str, windows: list[int | None]) -> None:
    if backend == "triton":
        ops = triton_ops()
    else:
        ops = choose(Spec("cpu", "float32"), "reference") if backend == "reference" else native(backend)
    for seed in range(20 if backend != "triton" else 2):
        pick = random.Random(seed)
        batch = random_batch(pick, windows)
        batch.num_computed[:] = batch.num_tokens - 1
        state = make_rows(batch, torch.zeros((ROWS + 1, 3), dtype=torch.int64))
        state.last_token[:ROWS] = torch.from_numpy(
            batch.token_ids[np.arange(ROWS), batch.num_computed].astype(np.int64)
        )
        state.num_computed[:ROWS] = torch.from_numpy(batch.num_computed)
        state.block_tables[:, :ROWS] = torch.from_numpy(batch.block_tables)
        rows = pick.sample(range(ROWS), pick.randint(1, ROWS))
        found = ops.decode_step(torch.tensor(rows, dtype=torch.int32), state, BLOCK, LENGTH)
        wanted = gather(batch, Runs(rows, [1] * len(rows), [1] * len(rows)))
        for group, window in enumerate(windows):
            mine, theirs = tight(found.of(group)), wanted.of(group)
            assert mine.slots.tolist() == theirs.slots.tolist()
            assert mine.token_ids.tolist() == theirs.token_ids.tolist()
            assert mine.positions.tolist() == theirs.positions.tolist()
            assert mine.page_start.tolist() == theirs.page_start.tolist()
            assert mine.context_lens.tolist() == theirs.context_lens.tolist()
            assert mine.logits_index.tolist() == theirs.logits_index.tolist() and mine.rows.tolist() == rows
            for start, context in zip(mine.page_start.tolist()[:-1], mine.context_lens.tolist(), strict=True):
                first = max(context - window, 0) // BLOCK if window else 0
                end = start + -(-context // BLOCK)
                assert mine.page_ids[start + first : end].tolist() == theirs.page_ids[start + first : end].tolist()
