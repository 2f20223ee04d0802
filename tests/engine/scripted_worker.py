"""Workers that are none, for tests of the overlapped executor: one computes with the fake model and can be told to
fail, one takes time on a clock of the test's own."""

from __future__ import annotations

import sys
import traceback
import types
from collections import deque
from collections.abc import Callable

import pytest
from fake_model import VOCAB, FakeExecutor, one_group

from octavo.errors import DeviceLost
from octavo.executor.base import StepFailed
from octavo.executor.inline import InlineExecutor
from octavo.rank import Rank
from octavo.wire.plan import Masks, Plan, Result, WorkerInfo

INFO = WorkerInfo(
    groups=one_group(1), vocab_size=VOCAB, max_model_len=64, device="none", dtype="none", backend="scripted",
    weights_bytes=0, kv_bytes=0,
)  # fmt: skip


def executor_over(worker: object, depth: int = 2) -> InlineExecutor:
    """Started, with this worker instead of the real one."""
    module = types.ModuleType("octavo.worker.worker")
    module.Worker = lambda _resolved, _files, rank: worker  # type: ignore[attr-defined]
    executor = InlineExecutor("resolved", "files", depth, Rank.alone("cpu"))  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "octavo.worker.worker", module)
        executor.start()
    return executor


class ScriptedWorker:
    """Computes each plan when it is launched, as a device in whose queue it is next; what it sampled shows when it is
    collected."""

    def __init__(self, fake: FakeExecutor) -> None:
        self.fake = fake
        self.fails: Callable[[Plan], str | None] = lambda _plan: None
        """Where a plan fails: launch, collect, or not at all."""
        self.is_lost = False
        self.shutdowns = 0
        self.in_flight: deque[tuple[Plan, Result | str]] = deque()

    def start(self) -> WorkerInfo:
        return INFO

    def launch(self, plan: Plan) -> None:
        self.fake.submit(plan)
        if not plan.masked:
            self._compute(plan)

    def masks(self, masks: Masks) -> None:
        self.fake.masks(masks)
        self._compute(self.fake.plans[-1])

    def _compute(self, plan: Plan) -> None:
        how = self.fails(plan)
        self.fake.fail_next = how in ("launch", "collect")
        try:
            self.in_flight.append((plan, self.fake.collect()))
        except StepFailed:
            self.fake._tolerant = 3  # what runs before this is known to anybody is worthless
            if how == "launch":
                raise RuntimeError("out of memory") from None
            self.in_flight.append((plan, "nan"))

    def collect(self) -> Result:
        plan, result = self.in_flight.popleft()
        if isinstance(result, Result):
            return result
        raise ValueError(f"logits of plan {plan.index} are not numbers")

    def shutdown(self) -> None:
        self.shutdowns += 1


class Blaming:
    """Implements Executor around the overlapped one; notes who may fail. Requests are told apart by their seeds."""

    def __init__(self, worker: object, depth: int, *wanted: type[Exception]) -> None:
        """`wanted`: what steps may raise; anything else is no fault that the test has made."""
        self._wanted = wanted
        self.depth = depth
        self.blamed: set[int] = set()
        """Requests of plans that failed, unless one failed that was submitted before them, while they were in
        flight."""
        self.seeds: dict[int, set[int]] = {}
        """Of the requests that each plan computes, by its index."""
        self._executor = executor_over(worker, depth)
        self._rows: dict[int, int] = {}
        self._plans: deque[tuple[int, bool]] = deque()

    def start(self) -> WorkerInfo:
        return INFO

    def submit(self, plan: Plan) -> None:
        self._rows.update({admit.row: admit.seed for admit in plan.admit})
        self.seeds[plan.index] = {self._rows[run.row] for run in plan.run}
        self._plans.append((plan.index, False))
        self._executor.submit(plan)

    def masks(self, masks: Masks) -> None:
        self._executor.masks(masks)

    def collect(self) -> Result:
        index, behind = self._plans.popleft()
        try:
            return self._executor.collect()
        except StepFailed as failed:
            if not isinstance(failed.__cause__, self._wanted):
                pytest.fail(f"{failed}\n{''.join(traceback.format_exception(failed.__cause__))}")
            if not behind:
                self.blamed |= self.seeds[index]
            self._plans = deque((later, True) for later, _ in self._plans)
            raise

    def shutdown(self) -> None:
        self._executor.shutdown()


class TimedWorker:
    """Launching takes the host some of the time, a step the device; tokens count up from 10."""

    def __init__(self, step: Callable[[Plan], float], launch: float = 0.0) -> None:
        self.now = 100.0
        self.gaps: list[float] = []
        """How long the device had nothing to do before each step but the first."""
        self.steps: list[float] = []
        self.is_lost = False
        self._step, self._launch = step, launch
        self._free_at = 0.0
        self._flight: deque[tuple[float, Result | Exception]] = deque()
        self._token = 10

    def start(self) -> WorkerInfo:
        return INFO

    def launch(self, plan: Plan) -> None:
        self.now += self._launch
        if self._free_at:
            self.gaps.append(max(self.now - self._free_at, 0.0))
        self.steps.append(self._step(plan))
        self._free_at = max(self.now, self._free_at) + self.steps[-1]
        samples = sum(run.samples for run in plan.run)
        self._token = 10 + (self._token - 9) % 80
        self._flight.append((self._free_at, Result(plan.index, ((self._token,),) * samples)))

    def collect(self) -> Result:
        done, result = self._flight.popleft()
        self.now = max(self.now, done)
        if isinstance(result, Exception):
            raise result
        return result

    def shutdown(self) -> None:
        pass


class LostWorker(TimedWorker):
    """The device is lost in the step of this index: when it is collected, or when the next is launched."""

    def __init__(self, at: int, on_launch: bool) -> None:
        super().__init__(lambda _plan: 0.001)
        self._at, self._on_launch = at, on_launch

    def launch(self, plan: Plan) -> None:
        if self._on_launch and plan.index > self._at:
            self.is_lost = True
            raise RuntimeError("CUDA error: unspecified launch failure")
        super().launch(plan)
        if plan.index == self._at and not self._on_launch:
            self._flight[-1] = self._flight[-1][0], DeviceLost("the GPU failed: CUDA error")
