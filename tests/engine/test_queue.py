"""The waiting queue against a plain model of it: lists, searched from end to end."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.queue import WaitingQueue
from octavo.engine.request import Request
from octavo.types import SamplingParams
from octavo.wire.messages import Add

LONG = 4


def request(arrival: int, owner: str = "", priority: int = 0, *, long: bool = False) -> Request:
    prompt = [1] * (LONG + 1 if long else 1)
    add = Add(arrival, prompt, SamplingParams(priority=priority, max_tokens=4), 0, owner=owner)
    return Request(b"client", add, arrival, 0.0, 64, b"")


def serve(queue: WaitingQueue, pass_long: bool = False) -> Request:
    found = queue.first(pass_long)
    assert found is not None
    queue.serve(found)
    found.first_scheduled = 1.0
    return found


class _Model:
    def __init__(self) -> None:
        self.waiting: list[Request] = []
        self.lines: list[tuple[int, str]] = []
        """The one whose turn is next first."""

    def push(self, new: Request) -> None:
        self.waiting.append(new)
        if (new.priority, new.add.owner) not in self.lines:
            self.lines.append((new.priority, new.add.owner))

    def remove(self, gone: Request) -> None:
        self.waiting.remove(gone)
        place = (gone.priority, gone.add.owner)
        if not any((r.priority, r.add.owner) == place for r in self.waiting):
            self.lines.remove(place)

    def serve(self, gone: Request) -> None:
        place = (gone.priority, gone.add.owner)
        if gone.first_scheduled is None:
            self.lines.remove(place)
            self.lines.append(place)
        self.remove(gone)

    def first(self, pass_long: bool) -> Request | None:
        may = [r for r in self.waiting if not (pass_long and len(r.token_ids) > LONG)]
        return min(may, key=self._key, default=None)

    def _key(self, r: Request) -> tuple[int, bool, int, int]:
        place = (r.priority, r.add.owner)
        returns = any(o.first_scheduled is not None for o in self.waiting if (o.priority, o.add.owner) == place)
        return (r.priority, not returns, self.lines.index(place), r.arrival)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_is_as_the_plain_model(data: st.DataObject) -> None:
    queue, model = WaitingQueue(0, LONG), _Model()
    served: list[Request] = []
    owners = st.sampled_from("abc"[: data.draw(st.integers(1, 3))])
    for arrival in range(data.draw(st.integers(1, 60))):
        event = data.draw(
            st.sampled_from(["push", "push", "push", "serve", "serve", "short", "return", "abort", "take"])
        )
        if event == "push":
            new = request(
                arrival, data.draw(owners), data.draw(st.sampled_from([0, 0, 0, -1])), long=data.draw(st.booleans())
            )
            queue.push(new)
            model.push(new)
        elif event in ("serve", "short"):
            wanted = model.first(event == "short")
            if wanted is not None:
                model.serve(wanted)
                assert serve(queue, event == "short") is wanted
                served.append(wanted)
        elif event == "return" and served:
            back = served.pop(data.draw(st.integers(0, len(served) - 1)))
            queue.push(back)
            model.push(back)
        elif event == "abort" and model.waiting:
            gone = data.draw(st.sampled_from(model.waiting))
            queue.remove(gone)
            model.remove(gone)
        elif event == "take":
            owner = data.draw(owners)
            taken = queue.take(lambda r, owner=owner: r.add.owner == owner)  # type: ignore[misc]
            assert taken == sorted((r for r in model.waiting if r.add.owner == owner), key=lambda r: r.order)
            for r in taken:
                model.remove(r)
            for r in taken:
                queue.push(r)
                model.push(r)
        assert len(queue) == len(model.waiting)
        assert queue.first(False) is model.first(False) and queue.first(True) is model.first(True)
        assert queue.has_short == (model.first(True) is not None)
        for line in queue._lines.values():
            assert sum(map(len, line.entries)) <= 2 * line.num_live + 17
        assert all(len(fronts) <= 2 * len(queue._lines) + 17 for fronts in queue._fronts)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.booleans()), max_size=40))
def test_one_owner_is_served_by_priority_and_arrival(kinds: list[tuple[int, bool]]) -> None:
    queue = WaitingQueue(0, LONG)
    requests = [request(i, "", priority, long=long) for i, (priority, long) in enumerate(kinds)]
    for r in requests:
        queue.push(r)
    assert [serve(queue) for _ in requests] == sorted(requests, key=lambda r: r.order)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from("abcd"), st.none()), max_size=80))
def test_who_waits_is_passed_by_one_of_each_other_owner(events: list[str | None]) -> None:
    """A letter: one more of that owner's; None: one is served."""
    queue = WaitingQueue(0, LONG)
    passed: dict[str, Counter[str]] = {}
    for arrival, owner in enumerate(events):
        if owner is not None:
            queue.push(request(arrival, owner))
            passed.setdefault(owner, Counter())
        elif len(queue):
            chosen = serve(queue).add.owner
            passed[chosen].clear()
            waiting = {r.add.owner for r in queue._live}
            passed = {o: counts for o, counts in passed.items() if o in waiting}
            for other in passed.keys() - {chosen}:
                passed[other][chosen] += 1
                assert passed[other][chosen] <= 1


def test_a_second_owner_waits_for_one_of_the_first() -> None:
    queue = WaitingQueue(0, LONG)
    for arrival in range(1000):
        queue.push(request(arrival, "crowd"))
    for arrival in range(1000, 1003):
        queue.push(request(arrival, "late"))
    owners = [serve(queue).add.owner for _ in range(8)]
    assert owners == ["crowd", "late", "crowd", "late", "crowd", "late", "crowd", "crowd"]


def test_what_was_begun_comes_back_first_and_costs_no_turn() -> None:
    queue = WaitingQueue(0, LONG)
    for arrival, owner in enumerate("aaabbb"):
        queue.push(request(arrival, owner))
    begun = [serve(queue), serve(queue)]
    assert [r.arrival for r in begun] == [0, 3]
    for r in begun:
        queue.push(r)
    assert [serve(queue).arrival for _ in range(6)] == [0, 3, 1, 4, 2, 5]


def test_a_full_queue_has_room_for_who_has_less_than_a_share() -> None:
    queue = WaitingQueue(6, LONG)
    for arrival in range(6):
        assert not queue.full(0)
        queue.push(request(arrival, "crowd"))
    running = [request(100 + i, "crowd") for i in range(2)]
    taken = 0
    while not queue.exceeds_share("late", 2, running):
        queue.push(request(200 + taken, "late"))
        taken += 1
    assert queue.full(0) and taken == 4  # half of six places and two rows
    assert queue.exceeds_share("crowd", 2, running) and not queue.exceeds_share("third", 2, running)
