"""Random events against the fake model: no page lost or shared wrongly, no token lost or doubled, empty at the end."""

from __future__ import annotations

import random

import pytest
from driver import Driver
from fake_model import VOCAB, Groups
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from octavo.engine.scheduler import SchedulerConfig
from octavo.wire.plan import GroupInfo


def some_groups(pick: random.Random, block_size: int) -> Groups:
    """One that sees everything, as most models have, or several of which some have windows."""
    small, large = pick.choice([1, 2, 3, 5]), pick.choice([8, 13, 20])
    windows = pick.choice([[None], [None], [None, small], [large, None], [small], [large, None, small]])
    return tuple(GroupInfo(pick.randint(3, 48 // block_size + 3), block_size, window) for window in windows)


def some_checkpoints(pick: random.Random, block_size: int) -> dict[str, int]:
    """Of a model whose layers keep states, in one of three; few enough to be given up."""
    if pick.random() < 0.67:
        return {}
    return {"num_checkpoints": pick.choice([1, 2, 5, 40]), "checkpoint_interval": block_size * pick.choice([1, 3, 8])}


def config(pick: random.Random) -> SchedulerConfig:
    """Small enough that blocks, rows and budget are all scarce at times."""
    block_size = pick.choice([1, 2, 4, 8])
    return SchedulerConfig(
        groups=some_groups(pick, block_size),
        max_num_seqs=pick.randint(1, 7),
        max_num_batched_tokens=pick.randint(3, 24),
        max_model_len=pick.choice([24, 40, 1000]),
        vocab_size=VOCAB,
        max_queued_requests=0,
        prefix_cache=pick.random() < 0.8,
        **some_checkpoints(pick, block_size),
    )


@pytest.mark.long
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_random_events(depth: int) -> None:
    events = preemptions = hits = shared = loaded = tokens = 0
    for seed in range(30):
        pick = random.Random(1000 * depth + seed)
        driver = Driver(config(pick), depth, seed)
        fails = pick.random() < 0.3
        while driver.num_events < 300:
            kind = pick.random()
            if kind < 0.2:
                driver.add()
            elif kind < 0.22:
                driver.add_choices(pick.randint(2, 5))
            elif kind < 0.28:
                driver.abort()
            elif kind < 0.30:
                driver.preempt()
            elif kind < 0.305:
                driver.abort_client(b"b")
            elif kind < 0.33:
                driver.pause()
            else:
                driver.step(fail=fails and pick.random() < 0.1)
        driver.finish()
        events += driver.num_events
        preemptions += driver.scheduler.counters.preemptions
        hits += driver.scheduler.counters.prefix_hits
        tokens += driver.scheduler.counters.generated_tokens
        shared += driver.executor.num_shared_in_step
        loaded += driver.executor.num_loaded
    assert events >= 9_000
    reached = {"tokens": tokens, "preemptions": preemptions, "hits": hits, "shared": shared, "loaded": loaded}
    least = {"tokens": 2500, "preemptions": 100, "hits": 500, "shared": 2, "loaded": 50}
    assert all(reached[name] > least[name] for name in least), (
        f"the events do not reach what they are to test: {reached}"
    )


class SchedulerMachine(RuleBasedStateMachine):
    """The same events, chosen (and shrunk, when one fails) by hypothesis."""

    @initialize(seed=st.integers(0, 2**16), depth=st.integers(1, 3))
    def begin(self, seed: int, depth: int) -> None:
        self.driver = Driver(config(random.Random(seed)), depth, seed)

    @rule()
    def add(self) -> None:
        self.driver.add()

    @rule(count=st.integers(1, 5))
    def add_choices(self, count: int) -> None:
        self.driver.add_choices(count)

    @rule()
    def abort(self) -> None:
        self.driver.abort()

    @rule()
    def preempt(self) -> None:
        self.driver.preempt()

    @rule()
    def pause(self) -> None:
        self.driver.pause()

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.driver.step()

    @rule()
    def failing_step(self) -> None:
        self.driver.step(fail=True)

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.finish()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
