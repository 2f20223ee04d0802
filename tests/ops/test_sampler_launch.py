"""Sampling for a device that runs behind: the host reads nothing back while it gives the work, and knows by itself what
every row needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from test_sampler import ROWS, VOCAB, SamplingOps, admit, greedy, make_sampler, mask_of, random_request
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.errors import EngineError
from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows
from octavo.types import SamplingParams
from octavo.worker.sampler import Sampler

READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim", "item")


class Watched(TorchDispatchMode):
    """Counts operations, and refuses those whose result the host has to know. `ops` are the backend's own affair."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            name = func.overloadpacket.__name__
            self.seen.append(name)
            assert name not in READS, f"{name} reads from the device"
            if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
                assert name == "index" or len(args) < 4 or not args[3], (
                    "reads the least and the largest index, at times"
                )
                kinds = [index.dtype for index in args[1] if index is not None]
                assert torch.bool not in kinds and torch.uint8 not in kinds, f"{name} counts what a mask selects"
        return func(*args, **(kwargs or {}))

    def kernels(self) -> list[str]:
        """Those that are work for a device."""
        views = ("view", "t", "transpose", "unbind", "slice", "select", "detach", "unsqueeze", "lift_fresh", "alias")
        return [name for name in self.seen if name not in (*views, "_unsafe_view", "permute", "empty")]


class WatchedOps(SamplingOps):
    def __init__(self, mode: Watched) -> None:
        for name in ("mask", "penalize", "sample", "logprobs"):
            setattr(self, name, self._apart(mode, getattr(SamplingOps, name)))

    @staticmethod
    def _apart(mode: Watched, op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            mode.inside = True
            try:
                return op(*args)
            finally:
                mode.inside = False

        return call


def every_kind() -> list[dict[str, Any]]:
    """Of what a row may need alone, and a row that needs all."""
    longer = [[4, 6], [2, 8, 10]]
    return [
        {"params": greedy()},
        {"params": SamplingParams(temperature=0.8, top_p=0.9, top_k=20, min_p=0.01)},
        {"params": SamplingParams(presence_penalty=0.5, frequency_penalty=0.2, repetition_penalty=1.1), "output": [7]},
        {"params": SamplingParams(logit_bias={3: 2.0, 9: -1.0})},
        {"params": greedy(min_tokens=3), "stop_ids": [5, 6], "bad": [[1], *longer]},
        {"params": greedy(allowed_token_ids=list(range(0, VOCAB, 3)))},
        {"params": SamplingParams(temperature=1.3, logprobs=4)},
        {
            "params": SamplingParams(
                temperature=0.9, presence_penalty=0.3, logit_bias={8: 1.0}, allowed_token_ids=[8, 9, 33], logprobs=0,
                min_tokens=2,
            ),
            "stop_ids": [9], "bad": longer, "output": [2, 8],
        },
    ]  # fmt: skip


MASKS = [None, mask_of(1, 2, 40), None, mask_of(3), mask_of(5), mask_of(9, 10, 11, 33), None, mask_of(8, 9)]


def test_a_launch_reads_nothing() -> None:
    """Every kind of row by itself and all together, with masks and without: and the tokens are those of `sample`."""
    mode = Watched()
    watched = Sampler(WatchedOps(mode), ROWS, VOCAB, "cpu")  # type: ignore[arg-type]
    plain = make_sampler()
    admits = [admit(row, **kind) for row, kind in enumerate(every_kind())]
    with mode:
        watched.admit_all(admits)
    for each in admits:
        plain.admit(each)
    logits = torch.randn((3, ROWS, VOCAB), generator=torch.Generator().manual_seed(4)) * 2
    for rows in (*([row] for row in range(ROWS)), [4, 1], list(range(ROWS)), [7, 3, 5, 0]):
        for masked in (False, True):
            masks = [MASKS[row] for row in rows] if masked else []
            for step in logits:
                with mode:
                    sampled = watched.launch(rows, step[rows].clone(), masks)
                assert watched.read(sampled, sampled.tensors()) == plain.sample(rows, step[rows].clone(), masks)
    with mode:
        for row in range(ROWS):
            watched.release(row)
        watched.admit_all(admits[::-1])


class Elsewhere:
    """A queue to a device of which nothing can be read at all: tensors there have shapes, no values."""

    def upload(self, arrays: Sequence[Any]) -> list[Tensor]:
        assert all(array.dtype.name in ("int32", "int64", "float32") for array in arrays)
        return [torch.from_numpy(array).to("meta") for array in arrays]

    def launch(self, work: Callable[[], None]) -> None:
        work()


class ShapesOnly:
    def __init__(self) -> None:
        self.called: set[str] = set()

    def mask(self, *tensors: Tensor) -> None:
        self.called.add("mask")
        assert all(tensor.is_meta for tensor in tensors)

    def penalize(self, logits: Tensor, rows: PenaltyRows) -> None:
        self.called.add("penalize")
        assert all(tensor.is_meta for tensor in (logits, *rows))

    def sample(self, logits: Tensor, rows: SamplingRows) -> Tensor:
        assert all(tensor.is_meta for tensor in (logits, *rows))
        assert all(tensor.shape == logits.shape[:1] and tensor.is_contiguous() for tensor in rows)
        return torch.empty(logits.shape[0], dtype=torch.int64, device="meta")

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
        values = torch.empty((len(token_ids), num_top), device="meta")
        return token_ids.float(), values, values.long()


def test_all_of_a_step_is_on_the_device() -> None:
    """An operation that takes tensors of two places raises, as does every read."""
    ops = ShapesOnly()
    sampler = Sampler(ops, ROWS, VOCAB, "meta", Elsewhere())  # type: ignore[arg-type]
    for _ in range(2):
        sampler.admit_all([admit(row, **kind) for row, kind in enumerate(every_kind())])
        for masks in ([], MASKS):
            for rows in (list(range(ROWS)), [2], [6, 7]):
                part = [masks[row] for row in rows] if masks else []
                sampled = sampler.launch(rows, torch.empty((len(rows), VOCAB), device="meta"), part)
                assert all(tensor.is_meta for tensor in sampled.tensors())
                shapes = [tuple(tensor.shape) for tensor in sampled.tensors()]
                num_wanted = len([row for row in rows if row >= 6])
                most = 4 if 6 in rows else 0
                scores = [(num_wanted,), (num_wanted, most), (num_wanted, most)] if num_wanted else []
                assert shapes == [(len(rows),), *scores]
        for row in range(ROWS):
            sampler.release(row)
    assert ops.called == {"mask", "penalize"}


def test_what_plain_requests_cost_in_launches() -> None:
    """All admissions of a plan together: two writes. A step of plain rows: two reads of settings, two operations to
    count, beside the draw. (One upload each.)"""
    mode = Watched()
    sampler = Sampler(WatchedOps(mode), ROWS, VOCAB, "cpu")  # type: ignore[arg-type]
    with mode:
        sampler.admit_all([admit(row, SamplingParams(top_p=0.9)) for row in range(ROWS)])
    assert mode.kernels() == ["index_copy_", "index_copy_"]
    mode.seen.clear()
    logits = torch.zeros((ROWS, VOCAB))
    with mode:
        sampler.launch(list(range(ROWS)), logits)
    assert mode.kernels() == ["index_select", "index_select", "add_", "index_copy_"]


def test_a_row_may_change_hands_before_its_token_is_read() -> None:
    """Launched two steps ahead, with rows released and admitted anew in between."""
    rng = random.Random(9)
    logits = torch.randn((40, ROWS, VOCAB), generator=torch.Generator().manual_seed(9)) * 2
    ahead, behind = make_sampler(), make_sampler()
    waiting, held = [], set[int]()
    for step in logits:
        left = [row for row in held if rng.random() < 0.3]
        for row in left:
            ahead.release(row)
            behind.release(row)
        held.difference_update(left)
        free = [row for row in range(ROWS) if row not in held and rng.random() < 0.8]
        admits = [admit(row, **random_request(rng)) for row in free]  # type: ignore[arg-type]
        ahead.admit_all(admits)
        for each in admits:
            behind.admit(each)
        held.update(free)
        rows = rng.sample(sorted(held), len(held) // 2 + 1 if held else 0)
        waiting.append((ahead.launch(rows, step[rows].clone()), behind.sample(rows, step[rows].clone())))
        if len(waiting) > 2:
            sampled, expected = waiting.pop(0)
            assert ahead.read(sampled, sampled.tensors()) == expected


def test_a_token_that_is_none_is_found_when_read_and_harms_no_table() -> None:
    sampler = make_sampler()
    kinds = [{"presence_penalty": 1.0}, {"presence_penalty": 1.0, "logprobs": 1}]
    sampler.admit_all([admit(row, greedy(**kind), bad=[[1, 2]]) for row, kind in enumerate(kinds)])
    logits = torch.zeros((2, VOCAB))
    logits[0, 3] = torch.nan
    sampled = sampler.launch([0, 1], logits)
    assert sampled.token_ids[0] == -1
    with pytest.raises(EngineError, match=r"rows \[0\]"):
        sampler.read(sampled, sampled.tensors())
    counts = sampler._penalties.tables[0]
    assert counts[:, VOCAB - 1].sum() == 0 and counts.sum() == 2


def test_edits_leave_other_rows_as_they_are_to_the_bit() -> None:
    seen: list[Tensor] = []

    class Kept(SamplingOps):
        @staticmethod
        def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
            seen.append(logits.clone())
            return SamplingOps.sample(logits, rows)

    sampler = Sampler(Kept(), ROWS, VOCAB, "cpu")  # type: ignore[arg-type]
    sampler.admit_all([admit(0, greedy()), admit(1, greedy(logit_bias={5: 3.0}), bad=[[2, 5]]), admit(2, greedy())])
    sampler.admit_all([admit(3, greedy(logit_bias={7: 3.0}), bad=[[3, 6]], output=[3])])
    logits = torch.full((3, VOCAB), -0.0)
    sampler.launch([0, 1, 2], logits.clone())
    wanted = logits.clone()
    wanted[1, 5] = 3.0
    assert torch.equal(seen[0].view(torch.int32), wanted.view(torch.int32))


def test_the_padding_row_stays_as_it_is() -> None:
    sampler = make_sampler()
    sampler.admit_all([admit(row, SamplingParams(temperature=1.0), seed=row) for row in range(ROWS)])
    floats, ints = sampler.settings
    assert floats.shape[0] == ints.shape[0] == ROWS + 1
    for count in (1, 3, ROWS):
        sampler.launch(list(range(count)), torch.zeros((count, VOCAB)))
    assert ints[:, 2].tolist() == [3, 2, 2, 1, 1, 1, 1, 1, 0]
    assert not floats[-1].any() and not ints[-1].any()
