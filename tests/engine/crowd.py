"""Random requests of random clients to an engine loop with plans in flight, and a judge of what they are told."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

from driver import InlineConstraints
from scripted_worker import Blaming
from test_engine_loop import INFO

from octavo.engine.constraints import Constraint, Constraints
from octavo.engine.loop import EngineLoop
from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.grammar.matcher import Vocabulary
from octavo.wire.local import LocalConnection, LocalTransport
from octavo.wire.messages import Abort, Add, Bye, Failed, Hello, Outputs, TokenOutput

seen: Counter[str] = Counter()
"""What the events reached, over all examples."""


class Crowd:
    def __init__(
        self, pick: random.Random, config: SchedulerConfig, executor: Blaming, constraints: Constraints | None = None
    ) -> None:
        self.pick = pick
        self.scheduler = Scheduler(config, constraints or InlineConstraints())
        self.executor = executor
        self.transport = LocalTransport()
        self.loop = EngineLoop(self.scheduler, executor, self.transport, INFO, lambda: 100.0, quiet=None)
        self.clients: list[LocalConnection] = []
        self.adds: dict[int, Add] = {}
        self.owner: dict[int, LocalConnection] = {}
        self.outputs: dict[int, list[TokenOutput]] = {}
        self.ended: dict[int, str] = {}
        self.enter()

    def tokens(self, id: int) -> list[int]:
        return [token for output in self.outputs[id] for token in output.token_ids]

    def events(self, count: int, make: Callable[[int], Add]) -> None:
        """`make(id)`: a request with this id, and this seed."""
        for _ in range(count):
            kind = self.pick.random()
            if kind < 0.2:
                self.add(make(len(self.adds)))
            elif kind < 0.24:
                self.abort()
            elif kind < 0.25:
                self.leave()
            elif kind < 0.28:
                self.preempt()
            else:
                self.turn()

    def enter(self) -> None:
        client = self.transport.connect()
        client.send(Hello())
        self.clients.append(client)

    def add(self, add: Add) -> None:
        self.adds[add.id], self.outputs[add.id] = add, []
        self.owner[add.id] = self.pick.choice(self.clients)
        self.owner[add.id].send(add)

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
                    assert message.id in self.executor.blamed, "failed for another's step"
                    self.ended[message.id] = "failed"
                    seen["failed"] += 1
                elif isinstance(message, Outputs):
                    for item in message.items:
                        assert item.id not in self.ended, "a token after the end"
                        self.outputs[item.id].append(item)
                        if item.finish_reason is not None:
                            self.ended[item.id] = item.finish_reason

    def finish(self) -> None:
        """Runs dry; nothing may be left behind."""
        for _ in range(4000):
            self.turn()
            if not self.loop.has_requests:
                break
        assert not self.loop.has_requests, "does not come to an end"
        assert self.scheduler.tables.num_held == 0 and self.ended.keys() == self.adds.keys()
        seen["preemptions"] += self.scheduler.counters.preemptions
        seen["hits"] += self.scheduler.counters.prefix_hits

    def judge(self, id: int, whole: list[int], reason: str) -> bool:
        """What the request should be told, unless it was ended before; → whether it was not."""
        found = self.tokens(id)
        assert found == whole[: len(found)], f"request {id} got other tokens than alone"
        if self.ended[id] in ("aborted", "failed"):
            return False
        assert (found, self.ended[id]) == (whole, reason)
        seen[reason] += 1
        return True


class ConstraintsOf(InlineConstraints):
    """With a vocabulary of the test's."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._of = vocabulary

    def compile(self, key: object, add: Add) -> Constraint:
        constraint = Constraint(key, add)
        constraint.compile(lambda: self._of)
        self._ready.append(constraint)
        return constraint


def reached(least: dict[str, int]) -> None:
    """Asserts that the events so far came to what they are to test."""
    for what, count in least.items():
        assert seen[what] >= count, f"too few {what}: {seen}"


def shared_prompt(pick: random.Random, stems: Sequence[list[int]], vocab: int, longest: int) -> list[int]:
    """Often begins as others do."""
    prompt = pick.choice(stems)[: pick.randint(1, 20)] + [pick.randrange(vocab)] * pick.randint(0, 3)
    return prompt[:longest]
