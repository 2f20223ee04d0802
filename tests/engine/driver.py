"""Drives a scheduler with the fake model through random events and judges every reply. Used by the property tests."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from fake_model import VOCAB, FakeExecutor, expected, vocabulary

from octavo.engine.blame import Blame, identity
from octavo.engine.constraints import Constraint, Constraints
from octavo.engine.inflight import Past
from octavo.engine.scheduler import Reply, Scheduler, SchedulerConfig
from octavo.executor.base import StepFailed
from octavo.types import SamplingParams
from octavo.wire.messages import Add, Failed
from octavo.wire.plan import Plan

STOP = 5
GRAMMARS = [
    "start: /[a-c]{1,40}/",
    'start: "forced" /[0-9]+/',
    'start: %json {"enum": ["red", "green", 12, null]}',
    "start: /(a|bb)*/",
]


SUSPECTS = ["s0", "s1", "s2", "s3"]
"""Keys of requests of which one may break engines."""


class InlineConstraints(Constraints):
    """Without threads: what they would do is done at once."""

    def __init__(self) -> None:
        super().__init__(vocabulary, lambda: None)

    def compile(self, key: object, add: Add) -> Constraint:
        constraint = Constraint(key, add)
        constraint.compile(vocabulary)
        self._ready.append(constraint)
        return constraint

    def compute(self, constraints: Sequence[Constraint]) -> None:
        for constraint in constraints:
            constraint.compute()

    def advance(self, constraint: Constraint, token: int) -> None:
        constraint.advance(token)
        self._ready.append(constraint)


@dataclass
class _Sent:
    add: Add
    tokens: list[int] = field(default_factory=list)
    finals: int = 0
    aborted: bool = False
    failed: bool = False
    num_replies: int = 0


class Driver:
    def __init__(self, config: SchedulerConfig, depth: int, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.blame = Blame({identity(key): Past(suspect=True, crashes=2) for key in SUSPECTS})
        self.scheduler = Scheduler(config, InlineConstraints(), self.blame)
        self.executor = FakeExecutor(
            config.groups, config.max_num_seqs, config.max_num_batched_tokens, depth, config.num_checkpoints
        )
        self.sent: dict[tuple[bytes, int], _Sent] = {}
        self.live: list[tuple[bytes, int]] = []
        self.plans: deque[tuple[Plan, int]] = deque()
        self.now = 0.0
        self.num_events = 0
        self._next_id = 0
        self._block = config.groups[0].block_size
        pick = self.random
        self._stems = [[pick.randrange(VOCAB) for _ in range(self.scheduler.max_len)] for _ in range(3)]

    # --- events

    def add(self) -> None:
        """A request whose prompt often shares its beginning with others', often on a page boundary."""
        self.num_events += 1
        pick, max_len = self.random, self.scheduler.max_len
        length = pick.choice([pick.randint(1, max_len), pick.randint(1, 3), self._block * 2])
        length = max(1, min(length, max_len - 1))
        stem = pick.choice(self._stems)
        shared = pick.choice([length, pick.randint(0, length)])
        prompt = stem[:shared] + [pick.randrange(VOCAB) for _ in range(length - shared)]
        if self.sent and pick.random() < 0.3:  # the next turn of a conversation, also of one that still runs
            before = pick.choice(list(self.sent.values())[-6:])
            turn = before.add.prompt_ids + before.tokens + prompt[: pick.randint(0, 2)]
            prompt = turn[: max_len - 1]
        params = SamplingParams(
            temperature=1.0,
            max_tokens=pick.choice([0, 1, 2, 5, 12, 30, None]),
            min_tokens=pick.choice([0, 0, 3]),
            priority=pick.choice([0, 0, 0, -1, 1]),
            cache_salt=pick.choice([None, None, "a"]),
            prompt_logprobs=pick.choice([None, None, None, 0]),
            logprobs=pick.choice([None, 1]),
        )
        grammar = pick.choice([None, None, None, pick.choice(GRAMMARS)])
        seed, stop_ids = pick.choice([0, pick.randrange(99)]), pick.choice([[], [STOP]])
        key = pick.choice(["", "", f"key {self._next_id}", pick.choice(SUSPECTS)])
        owner = pick.choice(["", "", "one", "two"])
        add = Add(self._next_id, prompt, params, seed, stop_ids, grammar=grammar, key=key, owner=owner)
        whole, _ = self._expected(add)
        if whole and pick.random() < 0.2:  # as after a restart of the engine
            add = msgspec.structs.replace(add, output_ids=whole[: pick.randint(1, len(whole))])
        self._add(pick.choice([b"a", b"b"]), add)

    def add_choices(self, count: int) -> None:
        """As n > 1 does: one prompt, several seeds."""
        self.num_events += 1
        prompt = self._stems[0][: self.random.randint(1, self.scheduler.max_len - 1)]
        for seed in range(count):
            self._add(b"a", Add(self._next_id, prompt, SamplingParams(max_tokens=4), seed))

    def abort(self) -> None:
        self.num_events += 1
        if self.live:
            client, id = self.random.choice(self.live)
            self.sent[client, id].aborted = True
            self.live.remove((client, id))
            self.scheduler.abort(client, [id, 10**9])

    def abort_client(self, client: bytes) -> None:
        self.num_events += 1
        for key in [key for key in self.live if key[0] == client]:
            self.sent[key].aborted = True
            self.live.remove(key)
        self.scheduler.abort_client(client)

    def preempt(self) -> None:
        """Takes a running request's pages away, whether or not another needs them."""
        self.num_events += 1
        planner = self.scheduler._planner
        if planner.running:
            planner.preempt(self.random.choice(planner.running))

    def pause(self) -> None:
        """Some clients, or none, do not read what they are sent."""
        self.num_events += 1
        self.scheduler.pause({client for client in (b"a", b"b") if self.random.random() < 0.4})

    def step(self, fail: bool = False) -> bool:
        """Fills the pipeline and collects one plan; False when there was nothing to do."""
        self.num_events += 1
        self.now += 0.01
        if self.scheduler.has_compiled:
            self._judge(self.scheduler.enter_compiled())
        while len(self.plans) < self.executor.depth:
            plan = self.scheduler.schedule(self.now)
            if plan is None:
                break
            self.executor.submit(plan)
            if plan.masked:
                self.executor.masks(self.scheduler.masks(plan))
            self.plans.append((plan, self._next_id))
        if not self.plans:
            holding = self.scheduler.holding
            is_held = holding.behind and len(holding) == self.scheduler.num_waiting and not self.scheduler.num_running
            assert is_held or not self.scheduler.has_requests, "requests, but nothing to compute"
            return False
        plan, _ = self.plans.popleft()
        self.executor.fail_next = fail
        try:
            result = self.executor.collect()
        except StepFailed:
            self._judge(self.scheduler.fail(plan, "failed"), may_fail=True)
        else:
            self.scheduler.took(self.random.choice([10, 1000, 100_000]))
            self._judge(self.scheduler.update(plan, result, self.now))
        self.scheduler.check()
        here = [case.past for case in self.blame._cases.values()]
        assert sum(past.suspect for past in here) <= 1, "two suspects at once"
        assert not any(request.client in self.scheduler.holding.behind for request in self.scheduler._planner.running)
        return True

    def finish(self) -> None:
        """Runs dry; all must have ended, exactly once, with what was expected, and every page be back."""
        self.scheduler.pause(set())
        steps = 0
        while self.step():
            steps += 1
            assert steps < 200 * (len(self.sent) + 1), "does not come to an end"
        assert not self.live, "a request never ended"
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        assert self.scheduler.tables.num_held == 0 and not self.blame._cases
        for sent in self.sent.values():
            assert sent.finals == (not sent.aborted)

    # --- judgement

    def _expected(self, add: Add) -> tuple[list[int], str]:
        executor = self.executor
        return expected(add, self.scheduler.max_len, executor.groups, executor.num_checkpoints > 0)

    def _add(self, client: bytes, add: Add) -> None:
        self._next_id += 1
        self.sent[client, add.id] = _Sent(add, list(add.output_ids))
        self.live.append((client, add.id))
        self._judge(self.scheduler.add(client, add, self.now))
        self._judge(self.scheduler.enter_compiled())

    def _judge(self, replies: list[Reply], may_fail: bool = False) -> None:
        for client, reply in replies:
            sent = self.sent[client, reply.id]
            assert not sent.aborted, "a reply after the abort"
            assert not sent.finals, "a reply after the final one"
            whole, reason = self._expected(sent.add)
            if isinstance(reply, Failed):
                assert may_fail and reply.code == "engine_error"
                sent.failed = True
                sent.finals += 1
                self.live.remove((client, reply.id))
                continue
            sent.num_replies += 1
            sent.tokens += reply.token_ids
            assert sent.tokens == whole[: len(sent.tokens)], "another token than expected"
            wanted = sent.add.params.logprobs is not None and bool(reply.token_ids)
            assert (reply.logprobs is not None) == wanted
            if sent.add.params.prompt_logprobs is not None and not sent.add.output_ids and sent.num_replies == 1:
                assert reply.prompt_logprobs is not None and reply.prompt_logprobs[0] is None
                ids = [entry.token_id for entry in reply.prompt_logprobs if entry is not None]
                assert ids == sent.add.prompt_ids[1:], "the prompt's log-probabilities are not complete"
            else:
                assert reply.prompt_logprobs is None
            if sent.num_replies == 1:
                assert reply.metrics is not None
            if reply.finish_reason is not None:
                assert sent.tokens == whole and reply.finish_reason == reason
                stopped = reason == "stop" and bool(whole) and whole[-1] == STOP
                assert reply.stop_reason == (STOP if stopped else None)
                assert reply.metrics is not None and reply.metrics.completion_tokens == len(whole)
                assert reply.metrics.cached_tokens <= reply.metrics.prompt_tokens == len(sent.add.prompt_ids)
                sent.finals += 1
                self.live.remove((client, reply.id))
