"""Round robin over keys: a second key waits for one of the first at most, whatever that has queued (T-FAIR)."""

from __future__ import annotations

import asyncio

import pytest

from octavo.grammar.turns import RoundRobin, Turns


def test_keys_take_turns() -> None:
    line: RoundRobin[str] = RoundRobin()
    for item in ("a0", "a1", "a2", "b0", "c0", "b1"):
        line.push(item[0], item)
    assert len(line) == 6
    assert [line.pop() for _ in range(6)] == ["a0", "b0", "c0", "a1", "b1", "a2"]
    with pytest.raises(IndexError):
        line.pop()


def test_a_second_key_waits_for_one_of_the_first() -> None:
    async def test() -> None:
        turns = Turns(1)
        order: list[str] = []

        async def enter(key: str) -> None:
            async with turns.turn(key):
                order.append(key)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(enter("a")) for _ in range(20)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(enter("b")))
        await asyncio.gather(*tasks)
        assert order.index("b") <= 3 and len(order) == 21

    asyncio.run(test())


@pytest.mark.parametrize("at", range(6))
def test_who_gives_up_keeps_no_place(at: int) -> None:
    async def test() -> None:
        turns = Turns(2)
        inside = 0

        async def enter(key: str) -> None:
            nonlocal inside
            async with turns.turn(key):
                inside += 1
                assert inside <= 2
                try:
                    await asyncio.sleep(0.001)
                finally:
                    inside -= 1

        tasks = [asyncio.create_task(enter(str(i % 3))) for i in range(6)]
        await asyncio.sleep(0.001)
        tasks[at].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(asyncio.gather(enter("x"), enter("y"), enter("z")), 5)

    asyncio.run(test())
