"""What the worker measures on a device and plans of it: the largest steps, the pages, and what memory runs out of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_device import FakeDevice
from tiny_models import make_reference, resolved_config, save_safetensors

from octavo.config.memory import MemoryPlan
from octavo.errors import OutOfMemory
from octavo.kernels import registry
from octavo.kernels.registry import Spec
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import ModelFiles
from octavo.wire.plan import Plan
from octavo.worker import kv, parts, profile
from octavo.worker.worker import Worker

MIB = 1 << 20


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return save_safetensors(make_reference(), tmp_path_factory.mktemp("tiny"))


def ran(plan: Plan) -> list[tuple[int, int]]:
    """(tokens, context) of each row."""
    lengths = {admit.row: len(admit.token_ids) for admit in plan.admit}
    return [(run.num_tokens, lengths[run.row]) for run in plan.run]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            {"max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": 128},
            [[(8, 8)] * 8, [(64, 128)], [(1, 128)] * 8, [(1, 128)]],
        ),
        (  # a budget of several whole sequences
            {"max_num_batched_tokens": 2048, "max_num_seqs": 4, "max_model_len": 1000},
            [[(512, 512)] * 4, [(682, 1000)] * 3, [(1, 256)] * 4, [(1, 1000)]],
        ),
        (  # more rows than tokens
            {"max_num_batched_tokens": 16, "max_num_seqs": 64, "max_model_len": 1000},
            [[(1, 1)] * 16, [(16, 1000)], [(1, 256)] * 16, [(1, 1000)]],
        ),
        (  # more budget than there can be tokens
            {"max_num_batched_tokens": 4096, "max_num_seqs": 2, "max_model_len": 100},
            [[(100, 100)] * 2, [(100, 100)] * 2, [(1, 100)] * 2, [(1, 100)]],
        ),
    ],
)
def test_the_steps_that_are_measured(options: dict[str, Any], wanted: list[list[tuple[int, int]]]) -> None:
    resolved = resolved_config(**options)
    plans = profile.device_plans(resolved)
    assert [ran(plan) for plan in plans] == wanted
    for plan in plans:
        assert all(run.samples for run in plan.run)
        assert sum(run.num_tokens for run in plan.run) <= resolved.max_num_batched_tokens
        for admit in plan.admit:
            assert admit.params.logprobs and admit.params.allowed_token_ids and admit.params.presence_penalty
            assert set(admit.block_ids[0]) == {0} and len(admit.block_ids[0]) * resolved.block_size >= len(
                admit.token_ids
            )


class Peaks(FakeDevice):
    """Each step took more than the one before, but the last."""

    def __init__(self) -> None:
        super().__init__(total=8 << 30, free=6 << 30)
        self.answers = [1, 5, 9, 3]

    def peak(self, work: Any) -> int:
        super().peak(work)
        return self.answers.pop(0) * MIB


def started(files: ModelFiles, device: FakeDevice, **changes: Any) -> Worker:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_BACKEND", "reference")
        worker = Worker(resolved_config(max_num_seqs=4, **changes), files, device)
        worker.start()
    return worker


def test_the_largest_counts(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[MemoryPlan] = []
    real = parts.plan_blocks

    def plan_and_keep(*given: Any) -> MemoryPlan:
        planned.append(real(*given))
        return planned[-1]

    monkeypatch.setattr(parts, "plan_blocks", plan_and_keep)
    device = Peaks()
    started(files, device, enforce_eager=True)
    (plan,) = planned
    assert plan.use.activations == 9 * MIB and not device.answers
    assert plan.blocks == (4 * 128 // 8,), "as many as four sequences can have"


def test_memory_that_others_have_is_counted(files: ModelFiles) -> None:
    with pytest.raises(OutOfMemory, match=r"^[^\n]* 0 are left of [^\n]* other processes and CUDA 924, [^\n]*$"):
        started(files, FakeDevice(total=1 << 30, free=100 * MIB), enforce_eager=True)
    with pytest.raises(OutOfMemory, match=r"^[^\n]*--gpu-memory-utilization 0\.5: [^\n]*$"):
        started(files, FakeDevice(total=1 << 30, free=1 << 29), enforce_eager=True, gpu_memory_utilization=0.5)


def test_pages_lie_in_one_piece_where_the_kernels_compute(files: ModelFiles) -> None:
    """ "meta" stands for a device that is not the host."""
    ops = registry.choose(Spec("cpu", "float32"), "reference")
    facts, resolved = read_facts(files), resolved_config()
    host = [cache.blocks for cache in kv.allocate(facts, resolved, ops, [3])]
    ops.device = torch.device("meta")
    there = [cache.blocks for cache in kv.allocate(facts, resolved, ops, [3])]
    assert [(page.shape, page.dtype) for page in there] == [(page.shape, page.dtype) for page in host]
    assert {page.device.type for page in there} == {"meta"}
    assert sum(page.nbytes for page in there) == 3 * kv.sizes(facts, resolved, ops)[0].block_bytes
