"""The inline executor around a worker that is not one."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import pytest
from patience import PATIENCE_S

from octavo.executor.base import StepFailed
from octavo.executor.inline import InlineExecutor
from octavo.rank import Rank
from octavo.wire.plan import Masks, Plan, Result


class Worker:
    shutdowns = 0
    is_lost = False

    def __init__(self, resolved: Any, files: Any, rank: Rank) -> None:
        assert (rank.index, rank.size) == (0, 1)
        self.made_of = (resolved, files)
        self.launched: list[Plan] = []
        self.masked: list[Masks] = []

    def start(self) -> Any:
        return self.made_of

    def launch(self, plan: Plan) -> None:
        self.launched.append(plan)
        if plan.index == 1:
            raise RuntimeError("out of luck")

    def masks(self, masks: Masks) -> None:
        self.masked.append(masks)
        if masks.index == 4:
            raise RuntimeError("a mask of another vocabulary")

    def collect(self) -> Result:
        plan = self.launched[-1]
        if plan.index == 2:
            raise StepFailed("known")
        return Result(plan.index)

    def shutdown(self) -> None:
        Worker.shutdowns += 1


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> InlineExecutor:
    module = types.ModuleType("octavo.worker.worker")
    module.Worker = Worker  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "octavo.worker.worker", module)
    executor = InlineExecutor("resolved", "files", rank=Rank.alone("cpu"))  # type: ignore[arg-type]
    assert executor.start() == ("resolved", "files")  # type: ignore[comparison-overlap]
    return executor


def test_plans_run_in_order_and_whatever_is_raised_is_a_failed_step(executor: InlineExecutor) -> None:
    executor.submit(Plan(0))
    assert executor.collect().index == 0
    executor.submit(Plan(1))
    with pytest.raises(StepFailed, match="step 1: RuntimeError: out of luck"):
        executor.collect()
    executor.submit(Plan(2))
    with pytest.raises(StepFailed, match="known"):
        executor.collect()
    executor.submit(Plan(3))
    assert executor.collect().index == 3
    executor.shutdown()
    executor.shutdown()
    assert Worker.shutdowns == 1


def test_masks_follow_a_plan_unless_it_has_failed(executor: InlineExecutor) -> None:
    worker = executor._worker
    assert isinstance(worker, Worker)
    for index in (0, 1, 4):
        executor.submit(Plan(index, masked=True))
        executor.masks(Masks(index, (b"",)))
        if index:
            with pytest.raises(StepFailed, match=f"step {index}: RuntimeError"):
                executor.collect()
        else:
            executor.collect()
    assert [masks.index for masks in worker.masked] == [0, 4]
    executor.submit(Plan(5, masked=True))
    with pytest.raises(AssertionError, match="masks of plan 4 after plan 5"):
        executor.masks(Masks(4, (b"",)))


def test_the_engine_does_not_import_torch() -> None:
    code = (
        "import sys, octavo.engine.loop, octavo.executor.inline, octavo.engine.faults, octavo.wire.local;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
