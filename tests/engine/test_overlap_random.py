"""The whole engine but the worker under random events, with plans in flight: every request gets the tokens that it gets
alone, each exactly once; whoever fails was in a step that failed by itself; nothing is left behind."""

from __future__ import annotations

import random
from collections import Counter

from driver import GRAMMARS, STOP, InlineConstraints
from fake_model import VOCAB, FakeExecutor, expected
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_worker import Blaming, ScriptedWorker
from test_engine_loop import INFO

from octavo.engine.loop import EngineLoop
from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.types import SamplingParams
from octavo.wire.local import LocalConnection, LocalTransport
from octavo.wire.messages import Abort, Add, Bye, Failed, Hello, Outputs

seen: Counter[str] = Counter()
"""What the events reached, over all examples."""


class Crowd:
    def __init__(self, pick: random.Random, depth: int) -> None:
        self.pick = pick
        block_size = pick.choice([1, 2, 4])
        self.config = SchedulerConfig(
            num_blocks=pick.randint(4, 40 // block_size + 4),
            block_size=block_size,
            max_num_seqs=pick.randint(1, 5),
            max_num_batched_tokens=pick.randint(3, 24),
            max_model_len=40,
            vocab_size=VOCAB,
            max_queued_requests=0,
            prefix_cache=pick.random() < 0.8,
        )
        config = self.config
        self.scheduler = Scheduler(config, InlineConstraints())
        self.worker = ScriptedWorker(
            FakeExecutor(config.num_blocks, block_size, config.max_num_seqs, config.max_num_batched_tokens)
        )
        failing = pick.choice([0.0, 0.0, 0.02, 0.2])
        self.worker.fails = lambda _plan: pick.choice(["launch", "collect"]) if pick.random() < failing else None
        self.transport = LocalTransport()
        self.executor = Blaming(self.worker, depth)
        self.loop = EngineLoop(self.scheduler, self.executor, self.transport, INFO, lambda: 100.0, client_timeout=None)
        self.clients: list[LocalConnection] = []
        self.adds: dict[int, Add] = {}
        self.owner: dict[int, LocalConnection] = {}
        self.tokens: dict[int, list[int]] = {}
        self.ended: dict[int, str] = {}
        self.stems = [[pick.randrange(VOCAB) for _ in range(20)] for _ in range(2)]
        self.enter()

    def enter(self) -> None:
        client = self.transport.connect()
        client.send(Hello())
        self.clients.append(client)

    def add(self) -> None:
        pick, id = self.pick, len(self.adds)
        prompt = pick.choice(self.stems)[: pick.randint(1, 20)] + [pick.randrange(VOCAB)] * pick.randint(0, 3)
        prompt = prompt[: self.scheduler.max_len - 1] or [1]
        params = SamplingParams(
            max_tokens=pick.choice([0, 1, 3, 10, None]), min_tokens=pick.choice([0, 0, 2]),
            priority=pick.choice([0, 0, 1]), logprobs=pick.choice([None, 1]),
        )  # fmt: skip
        stop_ids = pick.choice([[], [STOP]])
        add = Add(id, prompt, params, id, stop_ids, grammar=pick.choice([None, None, None, pick.choice(GRAMMARS)]))
        self.adds[id], self.tokens[id], self.owner[id] = add, [], pick.choice(self.clients)
        self.owner[id].send(add)

    def abort(self) -> None:
        if live := [id for id in self.adds if id not in self.ended]:
            id = self.pick.choice(live)
            self.owner[id].send(Abort([id]))
            self.receive()  # what was on its way may come, nothing after it
            if id not in self.ended:
                self.ended[id] = "aborted"
                seen["aborts in flight"] += bool(self.loop._plans)

    def leave(self) -> None:
        client = self.pick.choice(self.clients)
        self.receive()
        client.send(Bye())
        self.clients.remove(client)
        for id, owner in self.owner.items():
            if owner is client:
                self.ended.setdefault(id, "aborted")
        self.enter()

    def preempt(self) -> None:
        if running := self.scheduler._planner.running:
            self.scheduler._planner.preempt(self.pick.choice(running))

    def turn(self) -> None:
        self.loop.turn(0)
        self.receive()
        if not self.loop._plans:
            self.scheduler.check()

    def receive(self) -> None:
        for client in self.clients:
            for message in client.receive():
                if isinstance(message, Failed):
                    assert message.id not in self.ended and message.code == "engine_error", message
                    assert self.adds[message.id].seed in self.executor.blamed, "failed for another's step"
                    self.ended[message.id] = "failed"
                    seen["failed"] += 1
                elif isinstance(message, Outputs):
                    for item in message.items:
                        assert item.id not in self.ended, "a token after the end"
                        self.tokens[item.id] += item.token_ids
                        if item.finish_reason is not None:
                            self.ended[item.id] = item.finish_reason

    def finish(self) -> None:
        for _ in range(4000):
            self.turn()
            if not self.loop.has_requests:
                break
        assert not self.loop.has_requests, "does not come to an end"
        assert not self.worker.in_flight and self.scheduler.pool.num_held == 0
        for id, add in self.adds.items():
            whole, reason = expected(add, self.scheduler.max_len)
            assert self.tokens[id] == whole[: len(self.tokens[id])], "another token than alone"
            if self.ended[id] not in ("aborted", "failed"):
                assert (self.tokens[id], self.ended[id]) == (whole, reason)
                seen[reason] += 1
        seen["preemptions"] += self.scheduler.counters.preemptions
        seen["hits"] += self.scheduler.counters.prefix_hits


@settings(max_examples=120)
@given(seed=st.integers(0, 2**32), depth=st.sampled_from([1, 2, 2, 3]))
def check_random_events(seed: int, depth: int) -> None:
    crowd = Crowd(random.Random(seed), depth)
    for _ in range(crowd.pick.randint(20, 150)):
        kind = crowd.pick.random()
        if kind < 0.2:
            crowd.add()
        elif kind < 0.24:
            crowd.abort()
        elif kind < 0.25:
            crowd.leave()
        elif kind < 0.28:
            crowd.preempt()
        else:
            crowd.turn()
    crowd.finish()


def test_random_events() -> None:
    seen.clear()
    check_random_events()
    for what, least in {"stop": 100, "length": 300, "aborts in flight": 20, "failed": 20, "preemptions": 100}.items():
        assert seen[what] >= least, f"the events do not reach what they are to test: {seen}"
    assert seen["hits"] > 500
