"""The engine loop over the local transport, with the fake model and a clock of the test's own."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
from fake_model import VOCAB, FakeExecutor, expected, one_group
from patience import PATIENCE_S

from octavo.engine import loop as loop_module
from octavo.engine.faults import FaultyExecutor
from octavo.engine.loop import EngineLoop
from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.executor.base import StepFailed
from octavo.types import SamplingParams
from octavo.wire.local import LocalConnection, LocalTransport
from octavo.wire.messages import (
    QUIET_S,
    Abort,
    Add,
    Bye,
    Draining,
    EngineInfo,
    Failed,
    Hello,
    Outputs,
    Ping,
    Pong,
    ToClient,
    TokenOutput,
    Welcome,
)

INFO = EngineInfo(
    instance="one",
    pid=1,
    model="m",
    model_path="p",
    max_model_len=64,
    max_num_seqs=4,
    block_size=4,
    num_blocks=64,
    vocab_size=VOCAB,
    device="none",
    dtype="none",
    backend="fake",
    max_queued_requests=8,
)


class House:
    def __init__(self, depth: int = 1, faults: dict[str, int] | None = None, **options: Any) -> None:
        config = SchedulerConfig(
            groups=one_group(),
            max_num_seqs=4,
            max_num_batched_tokens=16,
            max_model_len=64,
            vocab_size=VOCAB,
            max_queued_requests=8,
        )
        self.scheduler = Scheduler(config)
        self.fake = FakeExecutor(one_group(), 4, 16, depth)
        self.executor = FaultyExecutor(self.fake, faults) if faults else self.fake
        self.transport = LocalTransport()
        self.now = 100.0
        self.loop = EngineLoop(self.scheduler, self.executor, self.transport, INFO, lambda: self.now, **options)

    def client(self) -> LocalConnection:
        connection = self.transport.connect()
        connection.send(Hello())
        self.loop.turn(0)
        (welcome,) = connection.receive()
        assert isinstance(welcome, Welcome) and welcome.info == INFO
        return connection

    def run(self) -> None:
        """Until there is nothing to do."""
        for _ in range(1000):
            if not self.loop.turn(0) and not self.loop.has_requests:
                return
        raise AssertionError("does not come to an end")


def add(id: int, prompt: list[int] | None = None, **params: Any) -> Add:
    params.setdefault("max_tokens", 4)
    return Add(id, prompt or [id + 1, 2, 3], SamplingParams(**params), 0)


def outputs(messages: list[ToClient]) -> list[TokenOutput]:
    return [item for message in messages if isinstance(message, Outputs) for item in message.items]


def tokens(messages: list[ToClient], id: int) -> list[int]:
    return [token for item in outputs(messages) if item.id == id for token in item.token_ids]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_requests_of_several_clients(depth: int) -> None:
    house = House(depth)
    clients = [house.client() for _ in range(2)]
    for client in clients:
        for id in range(3):
            client.send(add(id))
    house.run()
    for client in clients:
        messages = client.receive()
        for id in range(3):
            assert tokens(messages, id) == expected(add(id), 64)[0]
        assert [item.id for item in outputs(messages) if item.finish_reason] == [0, 1, 2]


def test_one_message_per_client_and_step() -> None:
    house = House()
    one, two = house.client(), house.client()
    for id in range(2):
        one.send(add(id))
    two.send(add(0))
    assert house.loop.turn(0)
    for client, count in ((one, 2), (two, 1)):
        (message,) = client.receive()
        assert isinstance(message, Outputs) and len(message.items) == count


def test_refusals_are_messages() -> None:
    house = House()
    client = house.client()
    client.send(Add(1, [], SamplingParams(), 0))
    client.send(Add(2, [1] * 65, SamplingParams(), 0))
    client.send(add(3))
    client.send(add(3))
    for id in range(10, 23):
        client.send(add(id))
    house.run()
    failures = {m.id: m.code for m in client.receive() if isinstance(m, Failed)}
    assert failures == {1: "invalid_value", 2: "context_length_exceeded", 3: "duplicate_id", 22: "queue_full"}


@pytest.mark.parametrize("depth", [1, 2])
def test_abort_ends_without_a_message(depth: int) -> None:
    house = House(depth)
    client = house.client()
    client.send(add(0, max_tokens=50))
    client.send(add(1))
    house.loop.turn(0)
    client.receive()
    client.send(Abort([0, 5]))
    house.run()
    assert {item.id for item in outputs(client.receive())} == {1}
    assert house.scheduler.tables.num_held == 0


def test_ping_pong_and_stats() -> None:
    house = House(memory_mb=lambda: 12.5)
    client = house.client()
    client.send(add(0, prompt=[1] * 9))
    client.send(add(1, prompt=[1] * 9))
    house.loop.turn(0)
    client.receive()
    client.send(Ping())
    house.loop.turn(0)
    pong = next(message for message in client.receive() if isinstance(message, Pong))
    assert pong.instance == "one"
    stats = pong.stats
    assert (stats.num_running, stats.num_waiting, stats.steps, stats.memory_mb) == (2, 0, 1, 12.5)
    assert (stats.blocks_total, stats.blocks_used, stats.generated_tokens, stats.prompt_tokens) == (64, 4, 2, 18)
    assert (stats.prefix_queries, stats.prefix_hits) == (18, 8)
    house.run()
    client.send(Ping())
    house.loop.turn(0)
    stats = next(message for message in client.receive() if isinstance(message, Pong)).stats
    assert stats.blocks_used == stats.num_running == 0 and stats.blocks_cached == 3


def test_a_client_without_a_session_is_told_so() -> None:
    house = House()
    stranger = house.transport.connect()
    stranger.send(Abort([1]))
    stranger.send(Bye())
    house.loop.turn(0)
    assert stranger.receive() == []
    stranger.send(Ping())
    stranger.send(add(0))
    house.loop.turn(0)
    pong, failed = stranger.receive()
    assert isinstance(pong, Pong) and isinstance(failed, Failed) and failed.id == 0
    assert not house.loop.has_requests


def test_another_protocol_version_gets_the_version_and_no_session() -> None:
    house = House()
    client = house.transport.connect()
    client.send(Hello(version=99))
    client.send(add(0))
    house.loop.turn(0)
    welcome, failed = client.receive()
    assert isinstance(welcome, Welcome) and welcome.version != 99
    assert isinstance(failed, Failed)


def test_bye_and_a_new_hello_end_what_the_client_had() -> None:
    house = House()
    client, other = house.client(), house.client()
    other.send(add(0, max_tokens=30))
    for farewell in (Bye(), Hello()):
        client.send(Hello())
        client.send(add(0, max_tokens=60))
        client.send(add(1, max_tokens=60))
        house.loop.turn(0)
        client.send(farewell)
        house.loop.turn(0)
        assert house.scheduler.num_running + house.scheduler.num_waiting == 1
    house.run()
    assert tokens(other.receive(), 0) == expected(add(0, max_tokens=30), 64)[0]
    assert house.scheduler.counters.aborts == 4


def test_a_silent_client_is_told_of_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Its connection stands: it may be stopped, or busy."""
    caplog.set_level(logging.INFO, "octavo")

    def told(what: str) -> int:
        return sum(what in record.getMessage() for record in caplog.records)

    house = House()
    silent, speaking = house.client(), house.client()
    for client in (silent, speaking):
        client.send(add(0, max_tokens=60))
    house.loop.turn(0)
    for turn in range(3):
        house.now += QUIET_S - 0.1
        speaking.send(Ping())
        house.loop.turn(0)
        assert told("is silent") == min(turn, 1)
    assert house.scheduler.num_running == 2
    silent.send(Ping())
    house.loop.turn(0)
    assert told("speaks again") == 1
    house.now += QUIET_S + 0.1
    speaking.send(Ping())
    house.loop.turn(0)
    assert told("is silent") == 2
    house.run()
    assert tokens(silent.receive(), 0) == expected(add(0, max_tokens=60), 64)[0]


def test_messages_that_waited_through_a_long_step_count(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    client = house.client()
    client.send(add(0, max_tokens=60))
    house.loop.turn(0)
    client.send(Ping())
    house.now += 60
    house.loop.turn(0)
    assert house.scheduler.num_running == 1 and "is silent" not in caplog.text


def test_without_heartbeats_silence_is_golden(caplog: pytest.LogCaptureFixture) -> None:
    house = House(quiet=None)
    client = house.client()
    client.send(add(0, max_tokens=60))
    house.loop.turn(0)
    house.now += 1e6
    house.loop.turn(0)
    assert house.scheduler.num_running == 1 and "is silent" not in caplog.text


@pytest.mark.parametrize("depth", [1, 2])
def test_a_step_that_raises_ends_only_its_requests(depth: int) -> None:
    house = House(depth, {"raise_at_step": 2})
    client = house.client()
    client.send(add(0))
    client.send(add(1))
    house.loop.turn(0)
    house.loop.turn(0)
    client.send(add(2))
    house.run()
    messages = client.receive()
    failures = {message.id: message for message in messages if isinstance(message, Failed)}
    assert failures.keys() == {0, 1} and all(failure.code == "engine_error" for failure in failures.values())
    assert "step" not in failures[0].message, "no internals for clients"
    assert tokens(messages, 2) == expected(add(2), 64)[0]
    house.scheduler.check()
    assert house.scheduler.tables.num_held == 0


def test_a_request_that_waits_while_a_step_raises_goes_on() -> None:
    house = House(faults={"raise_at_step": 3})
    client = house.client()
    for id in range(6):
        client.send(add(id, max_tokens=6))
    house.run()
    messages = client.receive()
    failed = {message.id for message in messages if isinstance(message, Failed)}
    assert failed == {0, 1, 2, 3}
    for id in (4, 5):
        assert tokens(messages, id) == expected(add(id, max_tokens=6), 64)[0]


def test_drain() -> None:
    house = House()
    client = house.client()
    client.send(add(0))
    house.loop.turn(0)
    house.loop.drain()
    client.send(add(1))
    house.loop.run(lambda: False)
    messages = client.receive()
    assert [message.code for message in messages if isinstance(message, Failed)] == ["unavailable"]
    assert sum(isinstance(message, Draining) for message in messages) == 1
    assert tokens(messages, 0) == expected(add(0), 64)[0]
    late = house.transport.connect()
    late.send(Hello())
    house.loop.turn(0)
    assert [type(message) for message in late.receive()] == [Welcome, Draining]


def test_busy_since_is_set_while_a_step_runs_and_only_then() -> None:
    house = House()
    client = house.client()
    seen = []
    collect = house.fake.collect

    def watched() -> Any:
        seen.append(house.loop.busy_since)
        return collect()

    house.fake.collect = watched  # type: ignore[method-assign]
    client.send(add(0))
    house.loop.turn(0)
    assert seen == [100.0] and house.loop.busy_since is None


def test_the_pool_is_checked_when_work_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    checks = []
    monkeypatch.setattr(house.scheduler, "check", lambda: checks.append(1))
    client = house.client()
    for _ in range(3):
        house.loop.turn(0)
    assert checks == []
    client.send(add(0))
    house.run()
    for _ in range(3):
        house.loop.turn(0)
    assert checks == [1]


def test_it_sleeps_when_there_is_nothing_to_do_and_wakes_for_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "IDLE_WAIT_S", 30.0)
    house = House(quiet=None)
    house.loop._clock = time.monotonic
    stop = threading.Event()
    waits: list[float | None] = []
    receive = house.transport.receive
    monkeypatch.setattr(house.transport, "receive", lambda timeout: (waits.append(timeout), receive(timeout))[1])
    thread = threading.Thread(target=house.loop.run, args=(stop.is_set,))
    thread.start()
    client = house.transport.connect()
    client.send(Hello())
    assert isinstance(client.receive(10)[0], Welcome)
    time.sleep(0.2)
    assert waits == [30.0] * len(waits) and len(waits) <= 2  # one for the Hello, one that still lasts
    client.send(add(0))
    messages: list[ToClient] = []
    while not any(item.finish_reason for item in outputs(messages)):
        messages += client.receive(10)
    assert tokens(messages, 0) == expected(add(0), 64)[0]
    stop.set()
    client.send(Bye())
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_faults_delay_and_raise_after_the_step_has_run() -> None:
    fake = FakeExecutor(one_group(), 4, 16)
    faulty = FaultyExecutor(fake, {"raise_at_step": 1, "step_delay_ms": 30})
    scheduler = Scheduler(SchedulerConfig(one_group(), 4, 16, 64, VOCAB))
    assert faulty.start().backend == "fake"
    scheduler.add(b"c", add(0), 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    faulty.submit(plan)
    began = time.monotonic()
    with pytest.raises(StepFailed, match="injected"):
        faulty.collect()
    assert time.monotonic() - began >= 0.03 and fake.num_steps == 1
    faulty.shutdown()


# --- the local transport


def test_local_transport_keeps_order_and_clients_apart() -> None:
    transport = LocalTransport()
    one, two = transport.connect(), transport.connect()
    one.send(Ping())
    two.send(Hello())
    one.send(Bye())
    assert transport.receive(0) == [(one.client, Ping()), (two.client, Hello()), (one.client, Bye())]
    assert transport.receive(0) == [] == transport.receive(0.001)
    transport.send(two.client, Draining())
    assert one.receive() == [] and two.receive() == [Draining()]


def test_local_transport_drops_what_comes_after_close() -> None:
    transport = LocalTransport()
    one, two = transport.connect(), transport.connect()
    one.close()
    one.send(Ping())
    transport.send(one.client, Draining())
    assert transport.receive(0) == [] and one.receive(None) == []
    waiting = threading.Thread(target=two.receive, args=(None,))
    waiting.start()
    transport.close()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    two.send(Ping())
    assert transport.receive(None) == [] and transport.connect().receive(None) == []
