"""Checkpoints of states: where they are made, which are found, and which are given up."""

from __future__ import annotations

import pytest
from fake_model import VOCAB, FakeExecutor, Groups, expected

from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.executor.base import StepFailed
from octavo.types import SamplingParams
from octavo.wire.messages import Add, TokenOutput
from octavo.wire.plan import GroupInfo, Plan

BLOCK, BUDGET, LENGTH, INTERVAL = 16, 256, 8192, 128
PROMPT = [i * 7 % VOCAB for i in range(4000)]
ONE: Groups = (GroupInfo(512, BLOCK),)
WINDOWED: Groups = (GroupInfo(512, BLOCK), GroupInfo(64, BLOCK, 64))


class House:
    def __init__(self, checkpoints: int = 64, interval: int = INTERVAL, groups: Groups = ONE, depth: int = 1) -> None:
        config = SchedulerConfig(
            groups, 4, BUDGET, LENGTH, VOCAB, num_checkpoints=checkpoints, checkpoint_interval=interval
        )
        self.scheduler = Scheduler(config)
        self.executor = FakeExecutor(groups, 4, BUDGET, depth, checkpoints)
        self.plans: list[Plan] = []
        self.found: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}
        self.adds: dict[int, Add] = {}

    def add(self, id: int, prompt: list[int], max_tokens: int = 8) -> None:
        self.adds[id] = add = Add(id, prompt, SamplingParams(max_tokens=max_tokens), 0)
        self.found[id] = []
        assert not self.scheduler.add(b"c", add, 0.0)

    def step(self) -> bool:
        while len(self.executor.plans) < self.executor.depth:
            plan = self.scheduler.schedule(0.0)
            if plan is None:
                break
            self.plans.append(plan)
            self.executor.submit(plan)
        if not self.executor.plans:
            return False
        plan = self.executor.plans[0]
        try:
            replies = self.scheduler.update(plan, self.executor.collect(), 0.0)
        except StepFailed:
            replies = self.scheduler.fail(plan, "failed")
        for _, reply in replies:
            if isinstance(reply, TokenOutput):
                self.found[reply.id] += reply.token_ids
                self.cached[reply.id] = reply.metrics.cached_tokens if reply.metrics else self.cached[reply.id]
            else:
                del self.found[reply.id]
        self.scheduler.check()
        return True

    def finish(self) -> None:
        while self.step():
            pass
        assert self.scheduler.tables.num_held == 0
        for id, found in self.found.items():
            assert found == expected(self.adds[id], LENGTH, self.executor.groups, True)[0]

    def run(self, id: int, prompt: list[int], max_tokens: int = 8) -> int:
        """→ how many of its prompt's tokens were cached."""
        self.add(id, prompt, max_tokens)
        self.finish()
        return self.cached[id]


@pytest.mark.parametrize("groups", [ONE, WINDOWED], ids=["one", "windowed"])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_next_turn_goes_on_where_the_prompt_before_it_ended(groups: Groups, depth: int) -> None:
    house = House(groups=groups, depth=depth)
    assert house.run(0, PROMPT[:500]) == 0
    turn = [*PROMPT[:500], *house.found[0], 1, 2, 3]
    assert house.run(1, turn) == 499 // BLOCK * BLOCK
    assert house.run(2, PROMPT[:500]) == 499 // BLOCK * BLOCK, "the same again, but for a token that is computed"


def test_a_long_answer_leaves_checkpoints_at_intervals() -> None:
    house = House()
    house.run(0, PROMPT[:100], max_tokens=400)
    assert house.run(1, [*PROMPT[:100], *house.found[0], 1]) == (100 + 399) // INTERVAL * INTERVAL


def test_where_two_prompts_part_the_third_goes_on() -> None:
    house = House(interval=1024)
    assert house.run(0, [*PROMPT[:200], 1, *PROMPT[:90]]) == 0
    assert house.run(1, [*PROMPT[:200], 2, *PROMPT[:90]]) == 0, "its blocks are known, but not the states there"
    assert house.run(2, [*PROMPT[:200], 3, *PROMPT[:90]]) == 200 // BLOCK * BLOCK


def test_runs_end_at_blocks_and_nothing_is_lost_of_a_budget() -> None:
    house = House(interval=1024)
    house.add(0, PROMPT[:1500], max_tokens=1)
    house.add(1, PROMPT[7:47], max_tokens=1)
    house.finish()
    ends: dict[int, int] = {}
    for plan in house.plans:
        for run in plan.run:
            ends[run.row] = ends.get(run.row, 0) + run.num_tokens
            assert ends[run.row] in (1500, 40) or ends[run.row] % BLOCK == 0
    assert ends == {0: 1500, 1: 40}
    assert len(house.plans) <= 1540 // (BUDGET - BLOCK) + 3


def test_what_a_chunk_left_is_given_up_before_what_a_prompt_left() -> None:
    house = House(checkpoints=3, interval=4096)
    house.run(0, PROMPT[:300])
    house.run(1, [5, *PROMPT[:3000]])
    assert house.run(2, PROMPT[:300]) == 299 // BLOCK * BLOCK
    house.run(3, [6, *PROMPT[:100]])
    house.run(4, [7, *PROMPT[:100]])
    house.run(5, [8, *PROMPT[:100]])
    assert house.run(6, PROMPT[:300]) == 0, "the longest unused one was given up"


def test_one_checkpoint_is_enough_to_go_on_with() -> None:
    house = House(checkpoints=1)
    house.run(0, PROMPT[:300])
    assert house.run(1, PROMPT[:300]) == 299 // BLOCK * BLOCK
    for id in range(2, 6):  # at once
        house.add(id, [id, *PROMPT[:300]])
    house.finish()


def test_what_is_preempted_goes_on_after_its_last_checkpoint() -> None:
    house = House()
    house.add(0, PROMPT[:300], max_tokens=100)
    while len(house.found[0]) < 90:
        house.step()
    planner = house.scheduler._planner
    planner.preempt(planner.running[0])
    house.finish()
    (again,) = [admit for plan in house.plans for admit in plan.admit if len(admit.token_ids) > 300]
    assert again.num_computed_tokens == (300 + 89) // INTERVAL * INTERVAL


@pytest.mark.parametrize("depth", [2, 3])
def test_who_goes_on_after_what_a_failed_step_saved_is_computed_anew(depth: int) -> None:
    house = House(depth=depth, interval=BLOCK)
    house.add(0, PROMPT[:64], max_tokens=1)
    for _ in range(2):  # plans that leave checkpoints are in flight, and one is admitted behind them
        plan = house.scheduler.schedule(0.0)
        assert plan is not None and plan.save
        house.plans.append(plan)
        house.executor.submit(plan)
        if not house.adds.get(1):
            house.add(1, [*PROMPT[:64], 1, 2, 3])
    assert house.plans[1].admit and house.plans[1].admit[0].checkpoint is not None
    house.executor.fail_next = True
    house.finish()
    assert list(house.found) == [1]


def test_a_checkpoint_may_fail_where_the_blocks_before_it_are_sound() -> None:
    house = House(depth=2, interval=1024)
    house.run(0, [*PROMPT[:200], 1, *PROMPT[:90]])
    before = len(house.plans)
    for id, rest in ((1, PROMPT[:90]), (2, [])):  # the second fills no block of its own
        house.add(id, [*PROMPT[:200], 1 + id, *rest], max_tokens=2)
        plan = house.scheduler.schedule(0.0)
        assert plan is not None
        house.plans.append(plan)
        house.executor.submit(plan)
    parting, behind = house.plans[before:]
    assert parting.save and behind.admit[0].checkpoint == parting.save[0].checkpoint
    house.executor.fail_next = True
    house.finish()
    assert list(house.found) == [0, 2]


def test_without_a_prefix_cache_nothing_is_saved() -> None:
    config = SchedulerConfig(ONE, 4, BUDGET, LENGTH, VOCAB, prefix_cache=False, num_checkpoints=8)
    assert Scheduler(config).tables.checkpoints is None
