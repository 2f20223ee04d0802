"""The ledger: what was accepted is finished once, whatever becomes of the engine."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.client.ledger import Ledger, Sequence
from octavo.errors import ApiError, EngineError, QueueFull, Unavailable
from octavo.types import SamplingParams
from octavo.wire.messages import Abort, Add, Failed, Outputs, ToEngine, TokenOutput


class _Engine:
    """Generates 0, 1, 2, … for each Add; keeps its place as a real one would."""

    def __init__(self) -> None:
        self.running: dict[int, tuple[Add, int]] = {}
        self.aborted: list[int] = []
        self.alive = True

    def send(self, message: ToEngine) -> bool:
        if not self.alive:
            return False
        if isinstance(message, Add):
            assert message.id not in self.running
            assert message.output_ids == list(range(len(message.output_ids)))
            self.running[message.id] = (message, len(message.output_ids))
        elif isinstance(message, Abort):
            for id in message.ids:
                assert id in self.running
                del self.running[id]
                self.aborted.append(id)
        return True

    def step(self) -> Outputs:
        items = []
        for id, (add, count) in list(self.running.items()):
            final = count + 1 == add.params.max_tokens
            items.append(TokenOutput(id, [count], finish_reason="length" if final else None))
            self.running[id] = (add, count + 1)
            if final:
                del self.running[id]
        return Outputs(items)


class _Request:
    """`enough`: tokens after which a sequence ends at a stop string."""

    def __init__(self, max_tokens: list[int], enough: int | None = None, owner: str = "") -> None:
        self.error: ApiError | None = None
        self.enough = enough
        self.owner = owner
        self.adds = {
            i: Add(i, [7], SamplingParams(max_tokens=count), 0, output_ids=[]) for i, count in enumerate(max_tokens)
        }
        self.tokens: dict[int, list[int]] = {i: [] for i in self.adds}
        self.ended: set[int] = set()

    @property
    def done(self) -> bool:
        return len(self.ended) == len(self.adds) or self.error is not None

    def unfinished(self) -> list[Sequence]:
        return [
            Sequence(
                Add(i, add.prompt_ids, add.params, add.seed, output_ids=list(self.tokens[i]), owner=self.owner),
                partial(self.take, i),
            )
            for i, add in self.adds.items()
            if i not in self.ended
        ]

    def take(self, i: int, message: TokenOutput) -> bool:
        assert i not in self.ended
        assert self.error is None
        self.tokens[i] += message.token_ids
        if message.finish_reason is not None:
            self.ended.add(i)
        elif self.enough is not None and len(self.tokens[i]) >= self.enough:
            self.ended.add(i)
            return True
        return False

    def failed(self, error: ApiError) -> None:
        assert self.error is None
        self.error = error


class _Setting:
    def __init__(self) -> None:
        self.ledger = Ledger()
        self.restart()

    def kill(self) -> None:
        self.die()
        self.restart()

    def die(self) -> None:
        self.engine.alive = False
        self.ledger.lose(self.engine)

    def restart(self) -> None:
        self.engine = _Engine()
        self.ledger.attach(self.engine)

    def run(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.ledger.receive(self.engine.step())


def test_tokens_go_on_after_a_crash_without_gap_or_doubling() -> None:
    setting = _Setting()
    request = _Request([6, 9])
    setting.ledger.enter(request)
    setting.run(3)
    stale = setting.engine.step()
    setting.kill()
    setting.ledger.receive(stale)  # what the dead engine said must not count any more
    setting.run(6)
    assert request.tokens == {0: list(range(6)), 1: list(range(9))}
    assert request.done
    assert len(setting.ledger) == 0


def test_stop_string_aborts_its_sequence_only() -> None:
    setting = _Setting()
    request = _Request([10, 10], enough=4)
    setting.ledger.enter(request)
    setting.run(3)
    assert setting.engine.aborted == []
    setting.run(1)
    assert sorted(setting.engine.aborted) == [1, 2]
    assert len(setting.ledger) == 0


def test_leaving_aborts_once() -> None:
    setting = _Setting()
    request, other = _Request([10, 10]), _Request([10])
    setting.ledger.enter(request)
    setting.ledger.enter(other)
    setting.ledger.leave(request)
    setting.ledger.leave(request)
    assert setting.engine.aborted == [1, 2]
    assert len(setting.ledger) == 1


def test_failed_sequence_fails_its_request_and_aborts_the_others() -> None:
    setting = _Setting()
    request = _Request([5, 5])
    setting.ledger.enter(request)
    del setting.engine.running[1]
    setting.ledger.receive_failure(Failed(1, "queue_full", "full"))
    assert isinstance(request.error, QueueFull)
    assert setting.engine.aborted == [2]
    assert len(setting.ledger) == 0


def test_a_request_keeps_its_key_and_no_other_has_it() -> None:
    setting = _Setting()
    for request in (_Request([9, 9]), _Request([9])):
        setting.ledger.enter(request)
    keys = [add.key for add, _ in setting.engine.running.values()]
    assert keys[0] == keys[1] != keys[2] and all(keys)
    ids = list(setting.engine.running)
    setting.kill()
    assert [add.key for add, _ in setting.engine.running.values()] == keys
    assert not set(ids) & set(setting.engine.running)


def test_what_waits_fails_when_no_engine_comes_back() -> None:
    setting = _Setting()
    request = _Request([9])
    setting.ledger.enter(request)
    setting.ledger.fail_waiting(EngineError("lost"))
    assert request.error is None  # it does not wait
    setting.die()
    setting.ledger.fail_waiting(EngineError("lost"))
    assert isinstance(request.error, EngineError) and len(setting.ledger) == 0


def test_several_engines_share_the_work_and_take_over_what_one_of_them_had() -> None:
    ledger = Ledger()
    engines = [_Engine() for _ in range(3)]
    for engine in engines:
        ledger.attach(engine)
    requests = [_Request([8]) for _ in range(6)]
    for request in requests:
        ledger.enter(request)
    assert [len(engine.running) for engine in engines] == [2, 2, 2]
    for engine in engines:
        ledger.receive(engine.step())
    ledger.drain(engines[2])
    engines[0].alive = False
    ledger.lose(engines[0])
    assert [len(engine.running) for engine in engines[1:]] == [4, 2]
    late = _Request([8])
    ledger.enter(late)
    assert [len(engine.running) for engine in engines[1:]] == [5, 2]
    for _ in range(8):
        for engine in engines[1:]:
            ledger.receive(engine.step())
    assert len(ledger) == 0
    assert all(request.tokens == {0: list(range(8))} for request in [*requests, late])


def test_refuses_when_full_or_detached() -> None:
    setting = _Setting()
    setting.ledger.enter(_Request([5, 5]), limit=3)
    with pytest.raises(QueueFull) as full:
        setting.ledger.enter(_Request([5, 5]), limit=3)
    assert full.value.retry_after == 1
    setting.die()
    late = _Request([5])
    with pytest.raises(Unavailable):
        setting.ledger.enter(late)
    assert len(setting.ledger) == 1
    assert late.error is None


def test_an_owner_with_less_than_its_share_is_taken_when_all_is_full() -> None:
    ledger = _Setting().ledger
    ledger.enter(_Request([5] * 6, owner="crowd"), limit=6)
    for owner in ("late", "late", "late", "third", "third"):  # a half each, then a third
        ledger.enter(_Request([5], owner=owner), limit=6)
    for owner in ("crowd", "late", "third"):
        with pytest.raises(QueueFull):
            ledger.enter(_Request([5], owner=owner), limit=6)
    with pytest.raises(QueueFull):
        ledger.enter(_Request([5, 5], owner="fourth"), limit=6)


def test_fail_all_ends_everything() -> None:
    setting = _Setting()
    requests = [_Request([5]) for _ in range(3)]
    for request in requests:
        setting.ledger.enter(request)
    setting.ledger.fail_all(Unavailable("closing"))
    assert all(isinstance(request.error, Unavailable) for request in requests)
    assert setting.engine.running == {}


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_lives_end_exactly_once(seed: int) -> None:
    """Adds, steps, aborts and losses in any order: every request ends with all its tokens, an error, or by leaving."""
    rng = random.Random(seed)
    setting = _Setting()
    requests: list[_Request] = []
    left: set[int] = set()
    for _ in range(80):
        event = rng.random()
        if event < 0.25:
            request = _Request([rng.randint(1, 6) for _ in range(rng.randint(1, 3))], rng.choice([None, 3]))
            setting.ledger.enter(request)
            requests.append(request)
        elif event < 0.75:
            setting.run(1)
        elif event < 0.85 and requests:
            index = rng.randrange(len(requests))
            if not requests[index].done:
                left.add(index)
            setting.ledger.leave(requests[index])
        else:
            setting.kill()
    setting.run(7)
    assert len(setting.ledger) == 0
    assert setting.engine.running == {}
    for index, request in enumerate(requests):
        assert request.done or index in left
        for i, add in request.adds.items():
            assert request.tokens[i] == list(range(len(request.tokens[i])))
            if request.error is None and index not in left:
                assert len(request.tokens[i]) == min(add.params.max_tokens or 0, request.enough or 10)
