"""Cache groups with windows: what a window has left behind is let go of, and a hit needs only what is inside it."""

from __future__ import annotations

import pytest
from fake_model import VOCAB, FakeExecutor, Groups, expected

from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.types import SamplingParams
from octavo.wire.messages import Add, TokenOutput
from octavo.wire.plan import GroupInfo

BLOCK, BUDGET, LENGTH = 16, 256, 8192
PROMPT = [i * 7 % VOCAB for i in range(4000)]


class House:
    def __init__(self, groups: Groups, budget: int = BUDGET) -> None:
        self.scheduler = Scheduler(SchedulerConfig(groups, 4, budget, LENGTH, VOCAB))
        self.executor = FakeExecutor(groups, 4, budget)
        self.executor._verify = lambda row: None  # type: ignore[method-assign,assignment]  # what is sampled tells
        self.most = [0] * len(groups)

    def run(self, id: int, prompt: list[int], max_tokens: int = 8) -> tuple[list[int], int]:
        """→ its tokens, and how many of its prompt's were cached."""
        add = Add(id, prompt, SamplingParams(max_tokens=max_tokens), 0)
        assert not self.scheduler.add(b"c", add, 0.0)
        found, cached = list[int](), -1
        while (plan := self.scheduler.schedule(0.0)) is not None:
            self.most = [max(m, p.num_held) for m, p in zip(self.most, self.scheduler.tables.pools, strict=True)]
            self.executor.submit(plan)
            for _, reply in self.scheduler.update(plan, self.executor.collect(), 0.0):
                assert isinstance(reply, TokenOutput)
                found += reply.token_ids
                cached = reply.metrics.cached_tokens if reply.metrics else cached
        self.scheduler.check()
        assert self.scheduler.tables.num_held == 0
        assert found == expected(add, LENGTH, self.executor.groups)[0]
        return found, cached


def test_a_long_context_takes_blocks_of_its_window_alone() -> None:
    house = House((GroupInfo(512, BLOCK), GroupInfo(512, BLOCK, 64)))
    house.run(0, PROMPT)
    whole, inside = house.most
    assert whole == -(-(len(PROMPT) + 7) // BLOCK)
    assert inside <= -(-(63 + BUDGET) // BLOCK) + 1 < whole / 10


def test_a_pool_as_large_as_the_window_is_enough_for_any_length() -> None:
    house = House((GroupInfo(512, BLOCK), GroupInfo(64 // BLOCK + 1, BLOCK, 64)))
    assert house.scheduler.max_len == LENGTH
    house.run(0, PROMPT[:1000])


def test_a_hit_needs_only_what_is_inside_the_window() -> None:
    """The pool of the group with the window has long given the first blocks to others."""
    house = House((GroupInfo(512, BLOCK), GroupInfo(24, BLOCK, 64)))
    house.run(0, PROMPT)
    assert house.run(1, PROMPT)[1] == (len(PROMPT) - 1) // BLOCK * BLOCK
    assert house.run(2, [*PROMPT[:1000], 1, 2, 3])[1] == 0, "what the token after a shorter prefix looks at is gone"
    house.scheduler.check()


@pytest.mark.parametrize("window", [1, 16, 17, 64])
def test_all_layers_may_have_the_window(window: int) -> None:
    house = House((GroupInfo(64, BLOCK, window),))
    house.run(0, PROMPT[:1500])
    assert house.run(1, PROMPT[:1500])[1] == 1499 // BLOCK * BLOCK
    assert house.most[0] <= -(-(window - 1 + BUDGET) // BLOCK) + 1
