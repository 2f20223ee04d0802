"""The whole engine but the worker under random events, with plans in flight: every request gets the tokens that it gets
alone, each exactly once; whoever fails was in a step that failed by itself; nothing is left behind."""

from __future__ import annotations

import random

from crowd import Crowd, reached, seen, shared_prompt
from driver import GRAMMARS, STOP
from fake_model import VOCAB, FakeExecutor, expected, one_group
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_worker import Blaming, ScriptedWorker

from octavo.engine.scheduler import SchedulerConfig
from octavo.types import SamplingParams
from octavo.wire.messages import Add


def config(pick: random.Random) -> SchedulerConfig:
    """Pages, rows and budget are all scarce at times."""
    block_size = pick.choice([1, 2, 4])
    return SchedulerConfig(
        groups=one_group(pick.randint(4, 40 // block_size + 4), block_size),
        max_num_seqs=pick.randint(1, 5),
        max_num_batched_tokens=pick.randint(3, 24),
        max_model_len=40,
        vocab_size=VOCAB,
        max_queued_requests=0,
        prefix_cache=pick.random() < 0.8,
    )


@settings(max_examples=120)
@given(seed=st.integers(0, 2**32), depth=st.sampled_from([1, 2, 2, 3]))
def check_random_events(seed: int, depth: int) -> None:
    pick = random.Random(seed)
    sizes = config(pick)
    worker = ScriptedWorker(FakeExecutor(sizes.groups, sizes.max_num_seqs, sizes.max_num_batched_tokens))
    failing = pick.choice([0.0, 0.0, 0.02, 0.2])
    worker.fails = lambda _plan: pick.choice(["launch", "collect"]) if pick.random() < failing else None
    crowd = Crowd(pick, sizes, Blaming(worker, depth, RuntimeError, ValueError))
    stems = [[pick.randrange(VOCAB) for _ in range(20)] for _ in range(2)]

    def make(id: int) -> Add:
        params = SamplingParams(
            max_tokens=pick.choice([0, 1, 3, 10, None]), min_tokens=pick.choice([0, 0, 2]),
            priority=pick.choice([0, 0, 1]), logprobs=pick.choice([None, 1]),
        )  # fmt: skip
        prompt = shared_prompt(pick, stems, VOCAB, crowd.scheduler.max_len - 1)
        grammar = pick.choice([None, None, None, pick.choice(GRAMMARS)])
        return Add(id, prompt, params, id, pick.choice([[], [STOP]]), grammar=grammar)

    crowd.events(pick.randint(20, 150), make)
    crowd.finish()
    assert not worker.in_flight
    for id, add in crowd.adds.items():
        crowd.judge(id, *expected(add, crowd.scheduler.max_len))


def test_random_events() -> None:
    seen.clear()
    check_random_events()
    reached({"stop": 100, "length": 300, "aborts in flight": 20, "failed": 20, "preemptions": 100, "hits": 500})
