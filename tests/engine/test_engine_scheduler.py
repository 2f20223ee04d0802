"""The scheduler's rules, one by one, with the fake model."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from fake_model import VOCAB, FakeExecutor, expected, one_group

from octavo.engine.queue import WaitingQueue
from octavo.engine.scheduler import Reply, Scheduler, SchedulerConfig
from octavo.types import Metrics, SamplingParams
from octavo.wire.messages import Add, Failed, TokenOutput
from octavo.wire.plan import Plan

C = b"client"


class House:
    """A scheduler and the fake model, one step at a time."""

    def __init__(self, depth: int = 1, **changes: Any) -> None:
        values: dict[str, Any] = {
            "groups": one_group(changes.pop("num_blocks", 64), changes.pop("block_size", 4)),
            "max_num_seqs": 4,
            "max_num_batched_tokens": 16,
            "max_model_len": 64,
            "vocab_size": VOCAB,
        }
        config = SchedulerConfig(**(values | changes))
        self.scheduler = Scheduler(config)
        self.executor = FakeExecutor(config.groups, config.max_num_seqs, config.max_num_batched_tokens, depth)
        self.now = 0.0
        self.plans: deque[Plan] = deque()
        self.tokens: dict[int, list[int]] = {}
        self.finals: dict[int, TokenOutput | Failed] = {}

    def add(self, id: int, prompt: list[int], **fields: Any) -> list[Reply]:
        outer = {k: fields.pop(k) for k in ("seed", "stop_ids", "bad_word_ids", "output_ids", "owner") if k in fields}
        fields.setdefault("max_tokens", 4)
        self.last = Add(id, prompt, SamplingParams(**fields), **({"seed": 0} | outer))
        replies = self.scheduler.add(C, self.last, self.now)
        self._note(replies)
        return replies

    def step(self) -> tuple[Plan, list[TokenOutput]]:
        """Submits what fits in flight, collects one plan: that plan and the replies to it."""
        self.now += 1.0
        while len(self.plans) < self.executor.depth and (plan := self.scheduler.schedule(self.now)) is not None:
            self.executor.submit(plan)
            self.plans.append(plan)
        plan = self.plans.popleft()
        self.now += 1.0
        replies = self.scheduler.update(plan, self.executor.collect(), self.now)
        self._note(replies)
        self.scheduler.check()
        return plan, [reply for _, reply in replies if isinstance(reply, TokenOutput)]

    def run(self) -> None:
        while self.scheduler.has_requests or self.plans:
            self.step()
        assert self.scheduler.tables.num_held == 0

    def _note(self, replies: list[Reply]) -> None:
        for _, reply in replies:
            if isinstance(reply, Failed):
                self.finals[reply.id] = reply
                continue
            self.tokens.setdefault(reply.id, []).extend(reply.token_ids)
            if reply.finish_reason is not None:
                self.finals[reply.id] = reply

    def reason(self, id: int) -> str | None:
        final = self.finals[id]
        assert isinstance(final, TokenOutput)
        return final.finish_reason

    def metrics(self, id: int) -> Metrics:
        final = self.finals[id]
        assert isinstance(final, TokenOutput) and final.metrics is not None
        return final.metrics


def failed(replies: list[Reply]) -> Failed:
    ((client, reply),) = replies
    assert client == C and isinstance(reply, Failed)
    return reply


def test_one_request_from_admission_to_release() -> None:
    house = House()
    house.add(7, [1, 2, 3, 4, 5], max_tokens=3)
    plan, (first,) = house.step()
    (admit,) = plan.admit
    assert (admit.row, admit.token_ids, admit.num_prompt_tokens, admit.num_computed_tokens) == (
        0,
        (1, 2, 3, 4, 5),
        5,
        0,
    )
    assert len(admit.block_ids[0]) == 2 and plan.run[0].samples
    assert first.metrics is not None and first.finish_reason is None
    plan, (second,) = house.step()
    assert not plan.admit and plan.run[0].num_tokens == 1 and second.metrics is None
    house.step()
    assert house.tokens[7] == expected(house.last, 64)[0] and house.reason(7) == "length"
    assert not house.scheduler.has_requests and house.scheduler.schedule(0.0) is None
    house.add(8, [1])
    assert house.step()[0].release == (0,)


def test_rows_are_permanent_and_the_lowest_is_reused() -> None:
    house = House()
    for id, count in ((0, 9), (1, 1), (2, 9)):
        house.add(id, [id + 1], max_tokens=count)
    house.step()
    house.add(3, [4])
    plan, _ = house.step()
    assert [admit.row for admit in plan.admit] == [1] and plan.release == (1,)
    assert sorted(run.row for run in plan.run) == [0, 1, 2]


def test_chunked_prefill_beside_decodes() -> None:
    house = House()
    house.add(0, [1, 2], max_tokens=30)
    house.step()
    house.add(1, [3] * 40)
    counts = []
    while 1 not in house.tokens:
        plan, outputs = house.step()
        assert plan.run[0].num_tokens == 1, "the decode comes first"
        assert any(output.id == 0 for output in outputs), "the decode does not wait for the prompt"
        counts.append(plan.run[1].num_tokens)
    assert counts == [15, 15, 10]


def test_a_long_prompt_does_not_block_short_ones_nor_they_it() -> None:
    house = House(max_model_len=240)
    house.add(0, [1] * 200)
    house.step()
    for id in range(1, 40):
        house.add(id, [id + 1] * 7, max_tokens=1)
    steps = 1
    while 0 not in house.tokens:
        house.step()
        steps += 1
        if steps == 3:
            assert 1 in house.finals, "a short prompt waits for a long one"
    assert steps <= 200 // 8 + 1
    house.run()


def test_a_second_long_prompt_waits_but_a_short_one_passes_it() -> None:
    house = House()
    house.add(0, [1] * 60)
    house.add(1, [2] * 60)
    house.add(2, [3] * 4, max_tokens=1)
    plan, _ = house.step()
    assert [len(admit.token_ids) for admit in plan.admit] == [60, 4]
    assert [run.num_tokens for run in plan.run] == [4, 12] or [run.num_tokens for run in plan.run] == [12, 4]
    house.run()
    assert list(house.finals) == [2, 0, 1]


def test_more_decodes_than_budget_take_turns_and_prompts_get_their_share() -> None:
    house = House(max_num_seqs=30, max_num_batched_tokens=16, num_blocks=512)
    for id in range(30):
        house.add(id, [id + 1], max_tokens=20)
    for _ in range(36):
        house.step()
    lengths = [len(tokens) for tokens in house.tokens.values()]
    assert len(lengths) == 30 and max(lengths) - min(lengths) < 5
    house = House(max_num_seqs=30, max_num_batched_tokens=16, num_blocks=512)
    for id in range(29):
        house.add(id, [id + 1], max_tokens=63)
    for _ in range(8):
        house.step()
    house.add(99, [5] * 12, max_tokens=1)
    for _ in range(3):
        house.step()
    assert 99 in house.finals


def test_priority_then_arrival() -> None:
    house = House(max_num_seqs=1)
    for id, priority in ((0, 5), (1, 5), (2, -1)):
        house.add(id, [1], max_tokens=1, priority=priority)
    house.run()
    assert list(house.finals) == [2, 0, 1]


def test_preempted_by_priority_then_youth_with_the_same_output() -> None:
    house = House(num_blocks=9, max_num_seqs=3, max_model_len=36)
    adds = {}
    for id, priority in ((0, 0), (1, 1), (2, 0)):
        house.add(id, [id + 1] * 7, max_tokens=20, priority=priority)
        adds[id] = house.last
    victims = []
    while house.scheduler.has_requests:
        plan, _ = house.step()
        victims += [admit.num_prompt_tokens != len(admit.token_ids) for admit in plan.admit]
    assert house.scheduler.counters.preemptions > 0 and any(victims)
    assert next(iter(house.finals)) == 0 and list(house.finals)[-1] == 1, "the lowest priority is served last"
    for id, add in adds.items():
        assert house.tokens[id] == expected(add, 36)[0]


def test_the_oldest_is_never_preempted() -> None:
    house = House(num_blocks=8, max_num_seqs=4, max_model_len=32)
    for id in range(4):
        house.add(id, [id + 1] * 3, max_tokens=29)
    rows = set()
    while 0 not in house.finals:
        plan, _ = house.step()
        rows |= {admit.row for admit in plan.admit if admit.token_ids[0] == 1}
        assert not [admit for admit in plan.admit if admit.token_ids[0] == 1 and len(admit.token_ids) > 3]
    assert rows == {0}
    house.run()


def test_pages_are_not_reserved_for_max_tokens() -> None:
    house = House(num_blocks=16, max_num_seqs=4, max_model_len=64)
    for id in range(4):
        house.add(id, [id + 1] * 3, max_tokens=60)
    house.step()
    assert house.scheduler.num_running == 4 and house.scheduler.tables.num_held == 4


def test_admission_leaves_the_pages_that_running_prompts_need() -> None:
    house = House(num_blocks=12, max_model_len=48)
    house.add(0, [1] * 40, max_tokens=1)
    house.add(1, [2] * 8, max_tokens=1)
    plan, _ = house.step()
    assert len(plan.admit) == 1
    house.run()
    assert house.scheduler.counters.preemptions == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_abort_at_any_stage(depth: int) -> None:
    for steps in range(8):
        house = House(depth=depth)
        house.add(0, [1] * 30, max_tokens=10)
        house.add(1, [2] * 3, max_tokens=10)
        for _ in range(steps):
            house.step()
        house.scheduler.abort(C, [0, 77])
        house.scheduler.abort(b"another", [1])
        house.run()
        assert list(house.finals) == [1] and house.tokens[1] == expected(house.last, 64)[0]
        assert house.scheduler.counters.aborts == 1
        house.scheduler.abort(C, [1])
        assert house.scheduler.counters.aborts == 1, "it had ended before"


def test_stop_ids_end_it_once_min_tokens_are_reached() -> None:
    add = Add(0, [3, 1], SamplingParams(max_tokens=50), 0, [5])
    seed = next(s for s in range(99) if len(expected(Add(0, [3, 1], add.params, s, [5]), 64)[0]) == 4)
    house = House()
    house.add(0, [3, 1], max_tokens=50, stop_ids=[5], seed=seed)
    house.run()
    final = house.finals[0]
    assert isinstance(final, TokenOutput) and (final.finish_reason, final.stop_reason) == ("stop", 5)
    assert house.tokens[0][-1] == 5 and len(house.tokens[0]) == 4
    house.add(1, [3, 1], max_tokens=50, stop_ids=[5], seed=seed, min_tokens=9)
    house.run()
    assert len(house.tokens[1]) >= 9 and 5 not in house.tokens[1][:8]


def test_length_ends_at_the_context_and_at_what_the_pool_holds() -> None:
    house = House(max_model_len=10)
    house.add(0, [1] * 6, max_tokens=100)
    house.run()
    assert len(house.tokens[0]) == 4 and house.reason(0) == "length"
    house = House(num_blocks=3)
    house.add(0, [1] * 6, max_tokens=None)
    house.run()
    assert len(house.tokens[0]) == 6 and house.reason(0) == "length"


def test_what_can_never_fit_is_refused() -> None:
    house = House(num_blocks=3)
    reply = failed(house.add(0, [1] * 13))
    assert reply.code == "context_length_exceeded" and "13" in reply.message and "12" in reply.message
    assert failed(house.add(0, [1] * 12)).code == "context_length_exceeded", "no room for one token"
    assert house.add(0, [1] * 12, max_tokens=0) == []
    house.run()
    assert house.reason(0) == "length"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [VOCAB]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"output_ids": [VOCAB]}, "prompt"),
        ({"stop_ids": [10**9]}, "stop_token_ids"),
        ({"bad_word_ids": [[1], [VOCAB]]}, "bad_words"),
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias"),
        ({"allowed_token_ids": [-5]}, "allowed_token_ids"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": "all"}, "top_p"),
        ({"seed": 2**70}, "seed"),
        ({"max_tokens": -3}, "max_tokens"),
    ],
)
def test_invalid_content_is_a_reply(changes: dict[str, Any], param: str | None) -> None:
    house = House()
    reply = failed(house.add(3, changes.pop("prompt", [1]), **changes))
    assert reply.id == 3 and reply.code == "invalid_value" and reply.param == param
    assert not house.scheduler.has_requests


def test_a_duplicate_id_ends_both() -> None:
    house = House()
    house.add(0, [1])
    house.step()
    assert failed(house.add(0, [2])).code == "duplicate_id"
    assert not house.scheduler.has_requests
    assert house.scheduler.add(b"another client", Add(0, [1], SamplingParams(), 0), 0.0) == []


def test_the_queue_is_bounded_beyond_the_free_rows() -> None:
    house = House(max_num_seqs=2, max_queued_requests=3)
    assert all(house.add(id, [1]) == [] for id in range(5))
    assert failed(house.add(5, [1])).code == "queue_full"
    house.step()
    assert house.scheduler.num_running == 2 and house.scheduler.num_waiting == 3
    assert failed(house.add(6, [1])).code == "queue_full"
    house.scheduler.abort(C, [4])
    assert house.add(7, [1]) == []
    house.run()
    assert sorted(house.tokens) == [0, 1, 2, 3, 7]


def test_one_owner_cannot_fill_the_queue_for_another() -> None:
    house = House(max_num_seqs=1, max_queued_requests=3)
    assert all(house.add(id, [1], owner="crowd") == [] for id in range(4))
    assert failed(house.add(4, [1], owner="crowd")).code == "queue_full"
    assert house.add(5, [1], owner="late") == house.add(6, [1], owner="late") == []  # half of the row and three places
    assert failed(house.add(7, [1], owner="late")).code == "queue_full"
    house.run()
    ended = [id for id, final in house.finals.items() if isinstance(final, TokenOutput)]
    assert ended == [0, 5, 1, 6, 2, 3]


def test_a_long_prompt_of_another_owner_waits_for_the_one_being_computed() -> None:
    house = House(max_num_seqs=4, max_num_batched_tokens=8)
    house.add(0, [1] * 30, owner="crowd")
    house.add(1, [2] * 30, owner="crowd")
    house.add(2, [3] * 30, owner="late")
    house.add(3, [4], owner="third")
    house.step()
    assert [r.id for r in house.scheduler._planner.running] == [0, 3]
    house.run()
    assert [id for id in house.finals if id != 3] == [0, 2, 1]


def test_a_stream_that_goes_on_after_a_restart_passes_the_full_queue() -> None:
    house = House(max_num_seqs=1, max_queued_requests=1)
    assert house.add(0, [1]) == house.add(1, [1]) == []
    assert failed(house.add(2, [1])).code == "queue_full"
    assert house.add(3, [1], output_ids=[5, 6]) == []
    house.run()
    assert sorted(house.tokens) == [0, 1, 3]


def num_standing(queue: WaitingQueue) -> int:
    """Requests in all lines, the dead too."""
    return sum(len(entries) for line in queue._lines.values() for entries in line.entries)


def test_aborted_waiters_do_not_pile_up() -> None:
    house = House(max_num_seqs=1)
    house.add(0, [1], max_tokens=60)
    house.step()
    for id in range(1, 1000):
        house.add(id, [1])
    house.scheduler.abort(C, range(500, 1000))  # from behind: their places in line stay for a while
    queue = house.scheduler._planner.queue
    assert len(queue) == 499 and num_standing(queue) <= 2 * 499 + 16
    house.scheduler.abort(C, range(499, 1, -1))
    assert len(queue) == 1 and num_standing(queue) <= 2 * 1 + 16
    house.run()
    assert list(house.finals) == [0, 1]


# --- prefix cache


@pytest.mark.parametrize("length", [4, 8, 9, 11, 16])
def test_a_repeated_prompt_hits_all_full_pages_but_computes_a_token(length: int) -> None:
    house = House()
    prompt = list(range(1, length + 1))
    for id in (0, 1):
        house.add(id, prompt, max_tokens=2)
        house.run()
    assert house.metrics(0).cached_tokens == 0
    assert house.metrics(1).cached_tokens == (length - 1) // 4 * 4
    assert house.tokens[0] == house.tokens[1]


def test_the_next_turn_hits_the_output_of_the_one_before() -> None:
    house = House()
    house.add(0, [1, 2, 3], max_tokens=14)
    house.run()
    house.add(1, [1, 2, 3, *house.tokens[0], 9], max_tokens=1)
    house.run()
    assert house.metrics(1).cached_tokens == 16


def test_choices_admitted_in_one_step_share_their_prompt() -> None:
    house = House()
    for seed in range(4):
        house.add(seed, list(range(1, 11)), seed=seed)
    plan, _ = house.step()
    assert [admit.num_computed_tokens for admit in plan.admit] == [0, 8, 8, 8]
    house.run()
    assert len({tuple(tokens) for tokens in house.tokens.values()}) == 4


def test_no_hits_without_the_cache_or_across_salts() -> None:
    house = House(prefix_cache=False)
    for id in (0, 1):
        house.add(id, [1] * 12)
        house.run()
    assert house.metrics(1).cached_tokens == 0 and house.scheduler.counters.prefix_queries == 0
    house = House()
    for id, salt in enumerate((None, "a", "b", "a")):
        house.add(id, [1] * 12, cache_salt=salt)
        house.run()
    assert [house.metrics(id).cached_tokens for id in range(4)] == [0, 0, 0, 8]


def test_a_preempted_request_hits_its_own_pages() -> None:
    house = House()
    house.add(0, [1] * 10, max_tokens=12)
    for _ in range(6):
        house.step()
    house.scheduler._planner.preempt(house.scheduler._planner.running[0])
    plan, _ = house.step()
    assert plan.admit[0].num_computed_tokens == 12 and len(plan.admit[0].token_ids) == 16
    house.run()
    assert house.tokens[0] == expected(house.last, 64)[0]


# --- prompt log-probabilities, nothing to generate, resumption


def test_prompt_logprobs_are_gathered_over_chunks_and_sent_once() -> None:
    house = House()
    prompt = list(range(1, 41))
    for id in (0, 1):
        house.add(id, prompt, max_tokens=3, prompt_logprobs=0)
        sent = []
        while id not in house.finals:
            sent += [output.prompt_logprobs for output in house.step()[1]]
        assert sent[1:] == [None, None] and sent[0] is not None
        assert sent[0][0] is None and [entry.token_id for entry in sent[0][1:] if entry] == prompt[1:]
        assert house.metrics(id).cached_tokens == 0


def test_prompt_logprobs_are_not_computed_again_after_preemption() -> None:
    house = House()
    house.add(0, [1] * 10, max_tokens=9, prompt_logprobs=0)
    house.step()
    house.scheduler._planner.preempt(house.scheduler._planner.running[0])
    plan, _ = house.step()
    assert plan.admit[0].params.prompt_logprobs is None
    house.run()


@pytest.mark.parametrize("depth", [1, 2])
def test_nothing_is_generated_for_max_tokens_0(depth: int) -> None:
    house = House(depth=depth)
    house.add(0, [1] * 40, max_tokens=0)
    house.add(1, [2] * 40, max_tokens=0, prompt_logprobs=0)
    house.run()
    assert not any(run.samples for plan in house.executor.history for run in plan.run)
    assert sum(run.num_tokens for plan in house.executor.history for run in plan.run) == 80
    for id in (0, 1):
        final = house.finals[id]
        assert isinstance(final, TokenOutput) and final.token_ids == [] and final.finish_reason == "length"
        assert (final.prompt_logprobs is not None) == (id == 1)


def test_output_from_before_a_restart_counts_as_output() -> None:
    house = House()
    house.add(0, [1, 2], max_tokens=8, min_tokens=6)
    whole, _ = expected(house.last, 64)
    house.run()
    house.add(1, [1, 2], max_tokens=8, min_tokens=6, output_ids=whole[:5], prompt_logprobs=1)
    plan, (first,) = house.step()
    assert plan.admit[0].num_prompt_tokens == 2 and len(plan.admit[0].token_ids) == 7
    assert first.metrics is not None and first.prompt_logprobs is None
    house.run()
    assert house.tokens[1] == whole[5:] and house.metrics(1).completion_tokens == 8
    ((_, reply),) = house.add(2, [1, 2], max_tokens=8, output_ids=whole)
    assert isinstance(reply, TokenOutput) and reply.finish_reason == "length" and reply.token_ids == []


# --- failures, depth, figures


def test_a_failed_step_ends_only_its_requests_and_its_pages_are_forgotten() -> None:
    house = House(max_num_seqs=1)
    house.add(0, [1] * 9)
    house.add(1, [1] * 9)
    plan = house.scheduler.schedule(0.0)
    assert plan is not None
    reply = failed(house.scheduler.fail(plan, "why"))
    assert (reply.id, reply.code, reply.message) == (0, "engine_error", "why")
    house.scheduler.check()
    assert house.scheduler.tables.num_held == 0 and len(house.scheduler.tables.prefix) == 0
    plan = house.scheduler.schedule(0.0)
    assert plan is not None and plan.admit[0].num_computed_tokens == 0 and plan.release == (0,)


def test_requests_that_build_on_a_failed_step_are_computed_anew() -> None:
    house = House(depth=2)
    house.add(0, [1] * 9)
    first = house.scheduler.schedule(0.0)
    house.add(1, [1] * 9)
    second = house.scheduler.schedule(0.0)
    assert first is not None and second is not None and second.admit[0].num_computed_tokens == 8
    assert failed(house.scheduler.fail(first, "")).id == 0
    assert house.scheduler.num_running == 0 and house.scheduler.num_waiting == 1
    house.scheduler.check()


@pytest.mark.parametrize("depth", [2, 3])
def test_tokens_of_plans_in_flight_are_discarded_after_a_stop(depth: int) -> None:
    seed = next(s for s in range(99) if expected(Add(0, [3], SamplingParams(max_tokens=50), s, [5]), 64)[1] == "stop")
    house = House(depth=depth)
    house.add(0, [3], max_tokens=50, stop_ids=[5], seed=seed)
    house.run()
    assert house.tokens[0] == expected(house.last, 64)[0] and house.reason(0) == "stop"
    sampled = sum(run.samples for plan in house.executor.history for run in plan.run)
    assert sampled == len(house.tokens[0]) + depth - 1


def test_max_tokens_is_not_overrun_in_flight() -> None:
    house = House(depth=3)
    house.add(0, [3], max_tokens=5)
    house.run()
    assert sum(run.num_tokens for plan in house.executor.history for run in plan.run) == 5


def test_metrics() -> None:
    house = House(max_num_seqs=1)
    house.add(0, [1] * 5, max_tokens=1)
    house.add(1, [2] * 20, max_tokens=4)
    house.run()
    metrics = house.metrics(1)  # a step takes two seconds, half of it before the plan is made
    assert (metrics.prompt_tokens, metrics.completion_tokens, metrics.cached_tokens) == (20, 4, 0)
    assert metrics.queue_ms == 3000 and metrics.prefill_ms == 3000 and metrics.decode_ms == 6000
    assert metrics.decode_iterations == 3 and metrics.tokens_per_second == 0.5
    assert metrics.time_to_first_token_ms == 6000
    assert house.metrics(0).tokens_per_second == 1.0 and house.metrics(0).decode_iterations == 0


def test_one_step_for_64_rows_is_cheap_in_calls() -> None:
    """Not a clock (machines differ) but the number of Python calls, which must grow linearly, a few per row."""
    import cProfile
    import pstats

    def calls(rows: int) -> int:
        house = House(max_num_seqs=rows, num_blocks=4096, block_size=16, max_num_batched_tokens=512)
        for id in range(rows):
            house.add(id, [id + 1] * 3, max_tokens=50)
        house.step()
        profile = cProfile.Profile()
        plan = profile.runcall(house.scheduler.schedule, 0.0)
        house.executor.submit(plan)
        result = house.executor.collect()
        profile.runcall(house.scheduler.update, plan, result, 0.0)
        return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]

    few, many = calls(32), calls(64)
    assert many < 64 * 40 and many < 2.2 * few
