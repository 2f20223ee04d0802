"""What the engine logs of single requests: each line names the HTTP request, failures are always said."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fake_model import VOCAB, FakeExecutor, one_group

from octavo.engine.faults import FaultyExecutor
from octavo.engine.loop import EngineLoop
from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.types import SamplingParams
from octavo.wire.local import LocalTransport
from octavo.wire.messages import Abort, Add, EngineInfo, Hello

INFO = EngineInfo(
    instance="one", pid=1, model="m", model_path="p", max_model_len=64, max_num_seqs=4, block_size=4, num_blocks=20,
    vocab_size=VOCAB, device="none", dtype="none", backend="fake", max_queued_requests=8,
)  # fmt: skip
RESOLVED = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class House:
    def __init__(self, num_blocks: int = 20, faults: dict[str, int] | None = None) -> None:
        config = SchedulerConfig(
            groups=one_group(num_blocks), max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64,
            vocab_size=VOCAB, max_queued_requests=8, prefix_cache=False,
        )  # fmt: skip
        self.scheduler = Scheduler(config)
        fake = FakeExecutor(one_group(num_blocks), 4, 16, 1)
        self.transport = LocalTransport()
        executor = FaultyExecutor(fake, faults) if faults else fake
        self.loop = EngineLoop(self.scheduler, executor, self.transport, INFO, lambda: 0.0, quiet=None)
        self.client = self.transport.connect()
        self.client.send(Hello())

    def add(self, id: int, length: int = 3, **options: Any) -> None:
        params = SamplingParams(max_tokens=options.pop("max_tokens", 4), **RESOLVED)
        ids = [i % VOCAB for i in range(length)]
        self.client.send(Add(id=id, prompt_ids=ids, params=params, seed=1, request_id=f"http-{id}", **options))

    def run(self) -> None:
        self.loop.turn(0)
        while self.loop.has_requests:
            self.loop.turn(0)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """(level, HTTP id, message) of the journal's lines."""
    return [(r.levelname, r.request_id, r.getMessage()) for r in caplog.records if r.name == "octavo.engine.journal"]


def test_a_life_is_told_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "octavo")
    house = House()
    house.add(1)
    house.add(2, output_ids=[5, 6])
    house.run()
    house.add(3, max_tokens=50)
    house.loop.turn(0)
    house.client.send(Abort([3]))
    house.run()
    lines = said(caplog)
    assert ("DEBUG", "http-1", "taken in: 3 prompt tokens") in lines
    assert ("DEBUG", "http-1", "length, with 4 output tokens") in lines
    assert ("DEBUG", "http-2", "taken in: 3 prompt tokens, goes on after 2") in lines
    assert ("DEBUG", "http-3", "aborted, with 1 output tokens") in lines
    assert len(lines) == 6


def test_preemption_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "octavo")
    house = House(num_blocks=8)
    for id in range(1, 5):
        house.add(id, length=6, max_tokens=12)
    house.run()
    preempted = [id for _, id, message in said(caplog) if message.startswith("preempted")]
    assert len(preempted) == house.scheduler.counters.preemptions > 0
    assert set(preempted) <= {f"http-{i}" for i in range(1, 5)}


def test_what_fails_and_what_is_refused_is_said_without_debugging(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo")
    house = House(faults={"raise_at_step": 2})
    house.add(1)
    house.add(2)
    house.add(3, length=65)
    house.run()
    assert [line[:2] for line in said(caplog)] == [("INFO", "http-3"), ("ERROR", "http-1"), ("ERROR", "http-2")]
    assert "the context holds 64" in said(caplog)[0][2] and said(caplog)[1][2] == "failed: step 1 failed"
    assert house.scheduler.counters.step_failures == 1
