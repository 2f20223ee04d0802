"""Graphs of decode steps: sizes, budget, padding; and what the worker tells when a device's memory does not suffice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_device import FakeDevice
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_reference, resolved_config, save_safetensors

from octavo.errors import OutOfMemory
from octavo.kernels.step import PagedCache
from octavo.modelfiles.files import ModelFiles
from octavo.types import SamplingParams
from octavo.wire.plan import Admit, Plan, Run
from octavo.worker.graphs import bucket_sizes
from octavo.worker.worker import Worker

MIB = 1 << 20


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save_safetensors(make_reference(), tmp_path_factory.mktemp("tiny"))


def started(files: ModelFiles, device: FakeDevice) -> Worker:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_BACKEND", "reference")
        worker = Worker(resolved_config(), files, device)
        worker.start()
    return worker


@given(st.integers(1, 1100))
def test_sizes_waste_little(max_rows: int) -> None:
    sizes = bucket_sizes(max_rows)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == max_rows
    for rows in range(1, max_rows + 1):
        size = next(size for size in sizes if size >= rows)
        assert size - rows < max(8, rows // 4), "a step computes at most a quarter more rows than it has to, or 7"


def run_one(worker: Worker, rows: int) -> list[int]:
    params = SamplingParams(temperature=0.0)
    admits = tuple(Admit(row, (row + 3, 9), 2, 0, ((row,),), params, 0, (), ()) for row in range(rows))
    worker.run(Plan(0, admit=admits, run=tuple(Run(row, 2, True) for row in range(rows))))
    found = worker.run(Plan(1, run=[Run(row, 1, True) for row in range(rows)])).token_ids
    worker.run(Plan(2, release=list(range(rows))))
    return found


def test_padding_touches_nobodys_pages(files: ModelFiles) -> None:
    device = FakeDevice()
    worker = started(files, device)
    runner = worker._runner
    assert runner is not None
    alone = [run_one(worker, rows) for rows in range(1, 9)]
    assert all(found == alone[-1][: len(found)] for found in alone)
    device.synchronize()
    pages = torch.stack([cache.blocks for cache in runner._kv if isinstance(cache, PagedCache)])
    assert not pages[:, :, 8:-1].any(), "pages that no row has"
    assert pages[:, :, -1].any(), "the padding's own"


def test_graphs_keep_to_what_was_set_aside(files: ModelFiles) -> None:
    """The largest is captured first, and what did not get one runs padded to the next that did."""
    device = FakeDevice()
    device.graph_bytes = MIB
    worker = started(files, device)
    steps = worker._runner._steps  # type: ignore[union-attr]
    assert steps._graphs.sizes == bucket_sizes(8)  # type: ignore[attr-defined]
    wanted = run_one(worker, 5)
    graphs = steps._graphs  # type: ignore[attr-defined]
    graphs._pairs.clear()
    assert graphs.capture(budget=3 * MIB) == 4 * MIB
    assert graphs.sizes == [4, 8] and graphs.fits(5) and not graphs.fits(9)
    assert run_one(worker, 5) == wanted and len(run_one(worker, 1)) == 1


def test_no_memory_for_one_sequence_is_one_line(files: ModelFiles) -> None:
    device = FakeDevice(total=64 * MIB, free=6 * MIB)
    with pytest.raises(OutOfMemory) as refused:
        started(files, device)
    assert "\n" not in refused.value.message and "--" in refused.value.message


def test_no_memory_while_it_starts_is_one_line(files: ModelFiles, tmp_path: Path) -> None:
    device = FakeDevice()
    device.fail_launch(after=3)
    with pytest.raises(OutOfMemory, match="lower --max-num-batched-tokens") as refused:
        started(files, device)
    assert "\n" not in refused.value.message
