"""How fast prompts are computed beside streams: the rule by itself, and the scheduler under it with invented times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from test_engine_scheduler import House

from octavo.engine.pace import CROWD, FLOOR, STRETCH_PERCENT, UNFELT_US, Pace

BUDGET = 512


def learned(decode_us: int = 2000, decodes: int = 1, token_us: int = 100) -> Pace:
    pace = Pace(BUDGET, 64)
    pace.observe(decodes, 0, decode_us)
    pace.observe(decodes, 20, decode_us + 20 * token_us)
    return pace


def test_without_streams_or_knowledge_the_whole_budget_is_for_prompts() -> None:
    pace = Pace(BUDGET, 64)
    assert pace.prompt_tokens(3, 1) == BUDGET
    pace.observe(0, 512, 100_000)
    assert pace.prompt_tokens(0, 1) == pace.prompt_tokens(3, 1) == BUDGET
    assert learned().prompt_tokens(0, 9) == BUDGET


def test_beside_streams_a_step_is_stretched_so_far_and_no_further() -> None:
    pace = learned(decode_us=10_000, token_us=200)
    tokens = pace.prompt_tokens(1, 1)
    assert 10_000 + tokens * 200 <= 10_000 * STRETCH_PERCENT // 100 < 10_000 + (tokens + 1) * 200


def test_a_prompt_always_gets_on() -> None:
    assert learned(decode_us=10, token_us=10_000).prompt_tokens(1, 1) == FLOOR


def test_the_cost_of_prompts_alone_serves_until_they_were_seen_beside_streams() -> None:
    pace = Pace(BUDGET, 64)
    pace.observe(0, 500, 50_000)
    pace.observe(4, 0, 4_000)
    assert pace.prompt_tokens(4, 1) == 48
    pace.observe(4, 48, 4_000 + 48 * 200)
    assert pace.prompt_tokens(4, 1) == 24
    for tokens in (24, 8, 8, 8):
        pace.observe(4, tokens, 40_000)
    assert pace.prompt_tokens(4, 1) == 16, "no more than three times the cost alone is believed"


def test_where_a_step_with_prompts_costs_much_however_few_it_takes_many() -> None:
    """As on a GPU: 0.8 ms for a step that decodes, 6 ms and 10 us a token for one with a prompt. Invented times."""
    steps = {}
    for unfelt_us in (0, UNFELT_US):
        pace = Pace(8192, 64, unfelt_us)
        pace.observe(0, 2048, 26_000)
        pace.observe(1, 0, 800)
        for _ in range(3):  # prompts of 2048 tokens
            left, steps[unfelt_us] = 2048, 0
            while left > 0:
                tokens = min(left, pace.prompt_tokens(1, 1))
                took = 800 + 6_000 + 10 * tokens
                assert not unfelt_us or took <= 1.1 * unfelt_us
                pace.observe(1, tokens, took)
                left -= tokens
                steps[unfelt_us] += 1
    assert steps[UNFELT_US] <= 2 and steps[0] > 50


def test_many_that_wait_come_before_few_that_run() -> None:
    pace = learned(decodes=4, token_us=20)
    alone = pace.prompt_tokens(4, 1)
    assert pace.prompt_tokens(4, 2) == alone, "one more than the streams' share"
    assert pace.prompt_tokens(4, 4 // CROWD + 3) > 2 * alone
    assert pace.prompt_tokens(4, 28) == BUDGET


def test_a_number_of_streams_not_seen_yet_is_judged_by_its_neighbours() -> None:
    pace = learned(decode_us=8000, decodes=8)
    assert pace.prompt_tokens(9, 1) == pace.prompt_tokens(5, 1) == pace.prompt_tokens(8, 1) == 96
    pace.observe(0, 100, 100 * 200)
    assert pace.prompt_tokens(18, 1) == 120, "ten streams more take ten tokens' time more"
    assert pace.prompt_tokens(3, 1) == 84


def test_one_step_that_was_held_up_changes_little() -> None:
    pace = learned()
    usual = pace.prompt_tokens(1, 1)
    pace.observe(1, 0, 5_000_000)
    assert pace.prompt_tokens(1, 1) < 3 * usual
    for _ in range(20):
        pace.observe(1, 0, 2000)
    assert abs(pace.prompt_tokens(1, 1) - usual) <= 1


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, BUDGET), st.integers(0, 10**9))), st.integers(1, 64))
def test_whatever_was_measured_the_answer_is_within_bounds(seen: list[tuple[int, int, int]], decodes: int) -> None:
    pace = Pace(BUDGET, 64)
    for step in seen:
        pace.observe(*step)
    assert FLOOR <= pace.prompt_tokens(decodes, 3) <= BUDGET


def timed_step(house: House, decode_us: int, token_us: int) -> tuple[int, int, int]:
    """One step of a machine with these costs; → (decodes, prompt tokens, microseconds)."""
    plan = house.scheduler.schedule(house.now)
    assert plan is not None
    house.executor.submit(plan)
    decodes = sum(run.num_tokens == 1 for run in plan.run)
    tokens = sum(run.num_tokens for run in plan.run) - decodes
    us = decode_us * bool(decodes) + token_us * tokens
    house.scheduler.took(us)
    house._note(house.scheduler.update(plan, house.executor.collect(), house.now))
    house.scheduler.check()
    return decodes, tokens, us


def test_a_long_prompt_hardly_disturbs_a_stream() -> None:
    house = House(max_num_batched_tokens=512, num_blocks=1024, max_model_len=2048)
    house.add(0, [1] * 5, max_tokens=1000)
    for _ in range(5):
        timed_step(house, 2000, 200)
    house.add(1, [2] * 1800, max_tokens=1)
    steps = []
    while 1 not in house.finals:
        steps.append(timed_step(house, 2000, 200))
    assert all(decodes == 1 for decodes, _, _ in steps), "the stream gets its token in every step"
    assert max(us for _, _, us in steps) <= 2000 * STRETCH_PERCENT // 100
    assert sum(us for _, _, us in steps) < 1.2 * 1800 * 200 * STRETCH_PERCENT / (STRETCH_PERCENT - 100)
    house.scheduler.abort(b"client", [0])
    house.run()


def test_a_crowd_of_prompts_is_read_almost_as_fast_as_without_streams() -> None:
    house = House(max_num_batched_tokens=512, num_blocks=2048, max_num_seqs=64, max_model_len=1024)
    for id in range(32):
        house.add(id, [id + 1] * 128, max_tokens=400)
    steps = 0
    while len(house.tokens) < 32:
        timed_step(house, 8000, 200)
        steps += 1
    assert steps <= 8 + 16
    house.scheduler.abort(b"client", range(32))
    house.run()
