"""The overlapped executor, and the engine loop around it: order, failures, loss of the device, times."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import pytest
from fake_model import VOCAB, FakeExecutor, expected, one_group
from msgspec import structs
from patience import PATIENCE_S
from scripted_worker import Blaming, LostWorker, ScriptedWorker, TimedWorker, executor_over
from test_engine_loop import INFO, add, outputs, tokens

from octavo.engine.faults import FaultyExecutor
from octavo.engine.loop import EngineLoop
from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.errors import DeviceLost
from octavo.executor.base import Executor, StepFailed
from octavo.wire.local import LocalConnection, LocalTransport
from octavo.wire.messages import Abort, Add, Failed, Hello, ToClient
from octavo.wire.plan import Plan, Result

CONFIG = SchedulerConfig(
    groups=one_group(), max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64, vocab_size=VOCAB,
    max_queued_requests=0,
)  # fmt: skip


class House:
    """The loop, one client, and a worker of the test's."""

    def __init__(self, worker: Any = None, depth: int = 2, config: SchedulerConfig = CONFIG) -> None:
        self.worker = worker or ScriptedWorker(
            FakeExecutor(config.groups, config.max_num_seqs, config.max_num_batched_tokens)
        )
        self.executor: Executor = executor_over(self.worker, depth)
        self.scheduler = Scheduler(config)
        self.transport = LocalTransport()
        clock = (lambda: self.worker.now) if isinstance(worker, TimedWorker) else (lambda: 100.0)
        self.loop = EngineLoop(self.scheduler, self.executor, self.transport, INFO, clock, quiet=None)
        self.client = self.connect()

    def connect(self) -> LocalConnection:
        connection = self.transport.connect()
        connection.send(Hello())
        self.loop.turn(0)
        connection.receive()
        return connection

    def run(self) -> list[ToClient]:
        """Until there is nothing to do; → what the client was sent."""
        for _ in range(2000):
            if not self.loop.turn(0) and not self.loop.has_requests:
                self.scheduler.check()
                assert self.scheduler.tables.num_held == 0 and not self.scheduler._flights
                return self.client.receive()
        raise AssertionError("does not come to an end")


def seeded(id: int, stop_ids: list[int] | None = None, **params: Any) -> Add:
    """A request whose seed is its id."""
    return structs.replace(add(id, **params), seed=id, stop_ids=stop_ids or [])


# --- the executor


class Listed:
    """Notes what is asked of it."""

    is_lost = False

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.launched: list[int] = []
        self.wrong: dict[int, Exception] = {}

    def start(self) -> str:
        return "info"

    def launch(self, plan: Plan) -> None:
        self.calls.append(f"launch {plan.index}")
        if plan.index in self.wrong and plan.index % 2:
            raise self.wrong[plan.index]
        self.launched.append(plan.index)

    def collect(self) -> Result:
        index = self.launched.pop(0)
        self.calls.append(f"collect {index}")
        if index in self.wrong:
            raise self.wrong[index]
        return Result(index)

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_failures_come_in_the_order_of_the_plans() -> None:
    worker = Listed()
    worker.wrong = {1: RuntimeError("no memory"), 2: ValueError("no number"), 3: StepFailed("known")}
    executor = executor_over(worker)
    executor.submit(Plan(0))
    executor.submit(Plan(1))
    assert executor.collect().index == 0
    executor.submit(Plan(2))
    with pytest.raises(StepFailed, match="step 1: RuntimeError: no memory"):
        executor.collect()
    executor.submit(Plan(3))
    with pytest.raises(StepFailed, match="step 2: ValueError: no number"):
        executor.collect()
    executor.submit(Plan(4))
    with pytest.raises(StepFailed, match="known"):
        executor.collect()
    assert executor.collect().index == 4
    assert worker.calls == [
        *("launch 0", "launch 1", "collect 0", "launch 2", "launch 3", "collect 2", "launch 4", "collect 4"),
    ]


@pytest.mark.parametrize("index", [1, 2])  # at its launch, when it is collected
def test_a_lost_device_is_not_a_failed_step(index: int) -> None:
    for lost in (DeviceLost("the GPU failed"), RuntimeError("CUDA error: illegal address")):
        worker = Listed()
        worker.wrong = {index: lost}
        worker.is_lost = True
        executor = executor_over(worker)
        with pytest.raises(DeviceLost, match="the GPU failed"):
            executor.submit(Plan(index))
            executor.collect()


def test_shutdown_waits_for_what_is_in_flight() -> None:
    worker = Listed()
    worker.wrong = {3: RuntimeError("at launch"), 4: RuntimeError("later")}
    executor = executor_over(worker, 3)
    for index in (2, 3, 4):
        executor.submit(Plan(index))
    executor.shutdown()
    executor.shutdown()
    assert worker.calls[3:] == ["collect 2", "collect 4", "shutdown"]


def test_the_executor_does_not_import_torch() -> None:
    code = "import sys, octavo.executor.choose, octavo.engine.process; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S)


# --- the loop


def test_the_token_behind_a_stop_is_never_sent() -> None:
    house = House()
    adds = [seeded(id, stop_ids=[5], max_tokens=40) for id in range(12)]
    for one in adds:
        house.client.send(one)
    messages = house.run()
    stopped = 0
    for id, one in enumerate(adds):
        whole, reason = expected(one, 64)
        stopped += reason == "stop"
        assert tokens(messages, id) == whole
        assert [item.finish_reason for item in outputs(messages) if item.id == id and item.finish_reason] == [reason]
    assert stopped > 3
    samples = sum(run.samples for plan in house.worker.fake.history for run in plan.run)
    assert samples > sum(len(tokens(messages, id)) for id in range(12)), "no plan was in flight behind a stop"


def test_abort_with_a_plan_in_flight() -> None:
    house = House()
    house.client.send(add(0, max_tokens=50))
    house.client.send(add(1, max_tokens=6))
    house.loop.turn(0)
    assert len(house.loop._plans) == 1
    house.client.send(Abort([0]))
    before = tokens(house.client.receive(), 0)
    messages = house.run()
    assert len(before) == 1 and tokens(messages, 0) == []
    assert house.scheduler.counters.aborts == 1


def test_a_row_is_given_away_while_its_last_plan_is_in_flight() -> None:
    config = SchedulerConfig(**{**CONFIG.__dict__, "max_num_seqs": 1})
    house = House(config=config)
    adds = [seeded(id, stop_ids=[5], max_tokens=30) for id in range(6)]
    for one in adds:
        house.client.send(one)
    messages = house.run()
    assert [tokens(messages, id) for id in range(6)] == [expected(one, 64)[0] for one in adds]


@pytest.mark.parametrize("how", ["launch", "collect"])
@pytest.mark.parametrize("next_too", [False, True])
@pytest.mark.parametrize("at", [1, 3])
def test_a_failed_step_ends_its_own_requests_and_no_others(how: str, next_too: bool, at: int) -> None:
    """What came with the plan behind it is computed anew if that one fails too, as it may for what the first left."""
    house = House()
    blaming = house.loop._executor = Blaming(house.worker, 2, RuntimeError, ValueError)
    failing = {at: how, at + 1: "collect" if next_too else None}
    house.worker.fails = lambda plan: failing.get(plan.index)
    adds = [seeded(id, max_tokens=9) for id in range(4)]
    house.client.send(adds[0])
    house.client.send(adds[1])
    for _ in range(at):
        house.loop.turn(0)
    house.client.send(adds[2])
    house.loop.turn(0)  # submits the plan behind the one that fails, and collects that
    house.client.send(adds[3])
    messages = house.run()
    assert blaming.seeds[at] == {0, 1} == blaming.blamed and blaming.seeds[at + 1] >= {2}
    failures = [message for message in messages if isinstance(message, Failed)]
    assert sorted(failure.id for failure in failures) == [0, 1]
    assert all(failure.code == "engine_error" for failure in failures)
    for id in (2, 3):
        assert tokens(messages, id) == expected(adds[id], 64)[0]
    assert house.scheduler.counters.preemptions == next_too


def test_steps_that_fail_for_good_come_to_an_end() -> None:
    house = House()
    house.worker.fails = lambda plan: "collect" if plan.index % 2 else "launch"
    for id in range(6):
        house.client.send(seeded(id))
    messages = house.run()
    assert sorted(message.id for message in messages if isinstance(message, Failed)) == list(range(6))


@pytest.mark.parametrize("on_launch", [False, True])
def test_a_lost_device_ends_the_loop(on_launch: bool) -> None:
    house = House(LostWorker(3, on_launch))
    house.client.send(add(0, max_tokens=40))
    with pytest.raises(DeviceLost):
        house.loop.run(lambda: False)
    assert house.loop.busy_since is None
    house.executor.shutdown()
    assert len(outputs(house.client.receive())) == 3


def test_injected_faults_count_steps_as_they_are_collected() -> None:
    house = House()
    house.loop._executor = FaultyExecutor(house.executor, {"lose_device_at_step": 4})
    house.client.send(add(0, max_tokens=40))
    with pytest.raises(DeviceLost, match="injected"):
        house.loop.run(lambda: False)
    assert len(outputs(house.client.receive())) == 3 and len(house.worker.fake.history) == 5


def test_drain_with_plans_in_flight() -> None:
    house = House()
    house.client.send(add(0, max_tokens=7))
    house.loop.turn(0)
    house.loop.drain()
    house.loop.run(lambda: False)
    assert tokens(house.client.receive(), 0) == expected(add(0, max_tokens=7), 64)[0]
    assert not house.worker.in_flight and house.scheduler.tables.num_held == 0


def test_shutdown_with_plans_in_flight() -> None:
    house = House()
    house.client.send(add(0, max_tokens=40))
    turns = iter(range(5))
    house.loop.run(lambda: next(turns) == 3)
    assert len(house.worker.in_flight) == 1
    house.executor.shutdown()
    assert not house.worker.in_flight and house.worker.shutdowns == 1


def test_a_device_that_hangs_looks_busy() -> None:
    """What the watchdog asks."""
    let_go = threading.Event()

    class Hangs(TimedWorker):
        def collect(self) -> Result:
            if len(self.steps) == 4:
                let_go.wait(PATIENCE_S)
            return super().collect()

    house = House(Hangs(lambda _plan: 0.001))
    house.client.send(add(0, max_tokens=6))
    thread = threading.Thread(target=house.run)
    thread.start()
    seen = None
    for _ in range(2000):
        if len(house.worker.steps) == 4 and (seen := house.loop.busy_since) is not None:
            break
        thread.join(0.005)
    let_go.set()
    thread.join(PATIENCE_S)
    assert seen is not None and not thread.is_alive()


# --- times, on a clock of the test's own


class Costly(LocalTransport):
    """Every message to a client costs the host time."""

    def __init__(self, worker: TimedWorker, cost: float) -> None:
        super().__init__()
        self._worker, self._cost = worker, cost

    def send(self, client: bytes, message: ToClient) -> None:
        self._worker.now += self._cost
        super().send(client, message)


def timed(step: Any, launch: float, reply: float, depth: int) -> tuple[TimedWorker, list[int]]:
    """50 tokens of two streams; → the worker, and what the pace of plans was told (microseconds)."""
    worker = TimedWorker(step, launch)
    house = House(worker, depth)
    house.loop._transport = house.transport = Costly(worker, reply)
    client = house.connect()
    took: list[int] = []
    house.scheduler.took = took.append  # type: ignore[method-assign]
    for id in range(2):
        client.send(add(id, max_tokens=50))
    house.run()
    return worker, took


def test_the_device_never_waits_for_a_host_that_needs_less_than_a_step() -> None:
    worker, took = timed(lambda _plan: 0.010, launch=0.004, reply=0.0055, depth=2)
    assert len(worker.gaps) == 49 and max(worker.gaps) < 1e-9
    assert all(us == pytest.approx(10_000, abs=1) for us in took[1:])
    worker, took = timed(lambda _plan: 0.010, launch=0.004, reply=0.0055, depth=1)
    assert min(worker.gaps) == pytest.approx(0.0095)
    assert all(us == pytest.approx(14_000, abs=1) for us in took)


def test_a_slow_host_costs_only_what_it_needs_more_than_a_step() -> None:
    worker, _ = timed(lambda _plan: 0.010, launch=0.004, reply=0.008, depth=2)
    assert sum(worker.gaps) / len(worker.gaps) == pytest.approx(0.002, abs=1e-3)


def test_steps_of_different_lengths_are_told_apart() -> None:
    """The pace of plans learns what each step took, not what the one in flight beside it did."""
    worker, took = timed(lambda plan: 0.030 if plan.index % 5 == 0 else 0.005, launch=0.001, reply=0.001, depth=2)
    assert len(took) == 50
    for us, step in list(zip(took, worker.steps, strict=True))[1:]:
        assert us == pytest.approx(step * 1e6, abs=1)
