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
from octavo.wire.plan import Masks, Plan, Result


class Worker:
    shutdowns = 0
    is_lost = False

    def __init__(self, resolved: Any, files: Any) -> None:
        self.made_of = (resolved, files)

    def start(self) -> Any:
        return self.made_of

    def run(self, plan: Plan, masks: Masks | None = None) -> Result:
        if plan.index == 1:
            raise RuntimeError("out of luck")
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
    executor = InlineExecutor("resolved", "files")  # type: ignore[arg-type]
    assert executor.start() == ("resolved", "files")  # type: ignore[comparison-overlap]
    return executor


def test_plans_run_in_order_and_whatever_is_raised_is_a_failed_step(executor: InlineExecutor) -> None:
    for index in range(4):
        executor.submit(Plan(index))
    assert executor.collect().index == 0
    with pytest.raises(StepFailed, match="step 1: RuntimeError: out of luck"):
        executor.collect()
    with pytest.raises(StepFailed, match="known"):
        executor.collect()
    assert executor.collect().index == 3
    executor.shutdown()
    executor.shutdown()
    assert Worker.shutdowns == 1


def test_the_engine_does_not_import_torch() -> None:
    code = (
        "import sys, octavo.engine.loop, octavo.executor.inline, octavo.engine.faults, octavo.wire.local;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)
