"""T-FAIR: where only so much can be done at once, a key waits for its own work, not for another's queue."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.fair import FairGate, RoundRobin


def test_a_line_of_lines() -> None:
    line: RoundRobin[str] = RoundRobin()
    for item in ("a0", "a1", "a2", "b0", "c0", "b1"):
        line.push(item[0], item)
    assert len(line) == 6 and line.first() == "a0"
    assert [line.pop() for _ in range(6)] == ["a0", "b0", "c0", "a1", "b1", "a2"]
    with pytest.raises(IndexError):
        line.pop()


def order_of(gate: FairGate, keys: list[str]) -> list[str]:
    """In which order the keys get through, each holding the gate for one turn of the loop."""
    seen: list[str] = []

    async def one(key: str) -> None:
        async with gate.entered(key):
            seen.append(key)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(one(key) for key in keys))

    asyncio.run(main())
    return seen


def test_a_second_key_waits_for_one_of_the_first() -> None:
    seen = order_of(FairGate(1), ["a"] * 50 + ["b"])
    assert seen.index("b") <= 2


def test_keys_take_turns() -> None:
    seen = order_of(FairGate(1), ["a"] * 4 + ["b"] * 4 + ["c"] * 2)
    assert sorted(seen[:4]) == ["a", "a", "b", "c"] and sorted(seen[4:7]) == ["a", "b", "c"]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 7), st.booleans()), max_size=30),
)
def test_never_more_than_fits_and_nothing_is_lost(capacity: int, jobs: list[tuple[str, int, bool]]) -> None:
    gate = FairGate(capacity)
    inside: list[int] = []
    done: list[int] = []

    async def one(number: int, key: str, amount: int) -> None:
        async with gate.entered(key, amount):
            inside.append(amount)
            assert sum(inside) <= capacity or len(inside) == 1
            try:
                await asyncio.sleep(0)
            finally:
                inside.remove(amount)
            done.append(number)

    async def main() -> None:
        tasks = [asyncio.create_task(one(i, key, amount)) for i, (key, amount, _) in enumerate(jobs)]
        await asyncio.sleep(0)
        for task, (_, _, is_cancelled) in zip(tasks, jobs, strict=True):
            if is_cancelled:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        kept = {i for i, (_, _, is_cancelled) in enumerate(jobs) if not is_cancelled}
        assert kept <= set(done)
        assert gate.taken == 0 and gate.num_waiting == 0

    asyncio.run(main())
