"""The ledger: what was accepted is finished once, whatever becomes of the engine."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.client.ledger import MOST_CRASHES, MOST_KILLS, Ledger
from octavo.errors import ApiError, EngineError, QueueFull, Unavailable
from octavo.types import SamplingParams
from octavo.wire.messages import Abort, Add, Failed, Outputs, ToEngine, TokenOutput


class _Engine:
    """Generates 0, 1, 2, … for each Add; keeps its place as a real one would."""

    def __init__(self) -> None:
        self.running: dict[int, tuple[Add, int]] = {}
        self.aborted: list[int] = []
        self.alive = True

    def receive(self, message: ToEngine) -> bool:
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

    def __init__(self, max_tokens: list[int], enough: int | None = None) -> None:
        self.error: ApiError | None = None
        self.enough = enough
        self.adds = {
            i: Add(i, [7], SamplingParams(max_tokens=count), 0, output_ids=[]) for i, count in enumerate(max_tokens)
        }
        self.tokens: dict[int, list[int]] = {i: [] for i in self.adds}
        self.ended: set[int] = set()

    @property
    def done(self) -> bool:
        return len(self.ended) == len(self.adds) or self.error is not None

    def unfinished(self) -> list[Add]:
        return [
            Add(i, add.prompt_ids, add.params, add.seed, output_ids=list(self.tokens[i]))
            for i, add in self.adds.items()
            if i not in self.ended
        ]

    def output(self, message: TokenOutput) -> list[int]:
        assert message.id not in self.ended
        assert self.error is None
        self.tokens[message.id] += message.token_ids
        if message.finish_reason is not None:
            self.ended.add(message.id)
        elif self.enough is not None and len(self.tokens[message.id]) >= self.enough:
            self.ended.add(message.id)
            return [message.id]
        return []

    def failed(self, error: ApiError) -> None:
        assert self.error is None
        self.error = error


class _Setting:
    def __init__(self) -> None:
        self.engine = _Engine()
        self.ledger = Ledger(lambda message: self.engine.receive(message))
        self.ledger.resume(crashed=False)

    def crash(self) -> None:
        """The engine breaks down by itself, and the next one says so."""
        self.die()
        self.restart(crashed=True)

    def kill(self) -> None:
        self.die()
        self.restart()

    def die(self) -> None:
        self.engine.alive = False
        self.ledger.suspend(died=True)

    def restart(self, *, crashed: bool = False) -> None:
        self.engine = _Engine()
        self.ledger.resume(crashed=crashed)

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
    setting.ledger.receive(Failed(1, "queue_full", "full"))
    assert isinstance(request.error, QueueFull)
    assert setting.engine.aborted == [2]
    assert len(setting.ledger) == 0


def test_request_alone_in_flight_at_two_crashes_fails_others_go_on() -> None:
    setting = _Setting()
    old = _Request([50])
    setting.ledger.enter(old)
    setting.run(2)
    setting.crash()
    new = _Request([5])
    setting.ledger.enter(new)
    setting.crash()
    assert isinstance(old.error, EngineError)
    setting.run(5)
    assert new.error is None
    assert new.tokens[0] == list(range(5))


def test_engines_killed_from_outside_accuse_nobody() -> None:
    setting = _Setting()
    requests = [_Request([3 * MOST_KILLS]), _Request([4, 3 * MOST_KILLS])]
    for request in requests:
        setting.ledger.enter(request)
    for kill in range(2 * MOST_KILLS):
        setting.run(kill % 2)
        setting.kill()
    setting.run(3 * MOST_KILLS)
    assert [request.error for request in requests] == [None, None]
    assert all(request.done for request in requests)


def test_who_only_ever_meets_killed_engines_fails_in_the_end() -> None:
    setting = _Setting()
    request = _Request([9])
    setting.ledger.enter(request)
    for _ in range(MOST_KILLS):
        assert request.error is None
        setting.kill()
    assert isinstance(request.error, EngineError)


class _Poison:
    """Some requests break every engine that is to compute more than so many of their tokens."""

    def __init__(self, setting: _Setting, poison: dict[_Request, int]) -> None:
        self.setting = setting
        self.poison = poison
        self.crashes = 0

    def broke(self) -> bool:
        """Whether the step that is due breaks the engine."""
        sent = self.setting.ledger._sent
        return any(
            count >= self.poison.get(sent[id].request, 1000)  # type: ignore[call-overload]
            for id, (_, count) in self.setting.engine.running.items()
        )

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.broke():
                self.crashes += 1
                self.setting.crash()
            else:
                self.setting.run(1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_trials_find_the_requests_that_break_the_engine(seed: int) -> None:
    """What breaks the engine each time it is computed fails, all others end complete. Where several do, at different
    tokens, one that meets them all may be taken for one of them; still all ends, soon."""
    rng = random.Random(seed)
    setting = _Setting()
    requests = [_Request([rng.randint(1, 9) for _ in range(rng.randint(1, 2))]) for _ in range(rng.randint(2, 6))]
    guilty = {request: rng.randint(0, 6) for request in requests[: rng.randint(0, 3)]}
    rng.shuffle(requests)
    world = _Poison(setting, guilty)
    for request in requests:
        setting.ledger.enter(request)
        world.run(rng.randint(0, 2))
    world.run(200)
    assert len(setting.ledger) == 0
    for request in requests:
        if request not in guilty and len(guilty) < 2:
            assert request.error is None
            assert request.tokens == {i: list(range(add.params.max_tokens or 0)) for i, add in request.adds.items()}
        assert request.done
    assert world.crashes <= 5 * len(guilty)


def test_crashes_without_a_culprit_end_in_the_end() -> None:
    """An engine that breaks for no reason that a trial shows: what was in flight at too many crashes fails."""
    setting = _Setting()
    requests = [_Request([100]) for _ in range(3)]
    for request in requests:
        setting.ledger.enter(request)
    for crash in range(MOST_CRASHES):
        assert all(request.error is None for request in requests), crash
        setting.run(5)
        setting.crash()
    assert all(isinstance(request.error, EngineError) for request in requests)
    assert len(setting.ledger) == 0


def test_trial_goes_on_when_a_suspect_leaves_or_fails() -> None:
    setting = _Setting()
    requests = [_Request([20]) for _ in range(4)]
    for request in requests:
        setting.ledger.enter(request)
    for _ in range(2):
        setting.crash()
    assert len(setting.engine.running) == 1
    setting.ledger.leave(requests[0])
    assert len(setting.engine.running) == 1
    setting.ledger.leave(requests[2])
    [id] = setting.engine.running
    del setting.engine.running[id]
    setting.ledger.receive(Failed(id, "engine_error", "no"))
    assert isinstance(requests[1].error, EngineError)
    setting.kill()  # says nothing: the last one is still on trial
    setting.run(20)
    assert requests[3].tokens[0] == list(range(20))
    assert len(setting.ledger) == 0


def test_being_forgotten_is_no_crash() -> None:
    setting = _Setting()
    request = _Request([8])
    setting.ledger.enter(request)
    for _ in range(4):
        setting.run(1)
        setting.ledger.suspend(died=False)
        setting.restart(crashed=True)
    setting.run(4)
    assert request.tokens[0] == list(range(8))


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
            setting.ledger.suspend(died=rng.random() < 0.7)
            setting.restart(crashed=rng.random() < 0.5)
    setting.run(7 + len(requests))  # suspects wait for one another
    assert len(setting.ledger) == 0
    assert setting.engine.running == {}
    for index, request in enumerate(requests):
        assert request.done or index in left
        for i, add in request.adds.items():
            assert request.tokens[i] == list(range(len(request.tokens[i])))
            if request.error is None and index not in left:
                assert len(request.tokens[i]) == min(add.params.max_tokens or 0, request.enough or 10)
