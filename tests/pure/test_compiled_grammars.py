"""Compiled grammars are kept by what they hold in memory, with what following them adds; the right one is let go."""

from __future__ import annotations

import time

import pytest

from octavo.grammar import compiled as module
from octavo.grammar.compiled import MIN_BYTES, CompiledGrammars, TooExpensive

MIB = 1 << 20


class Memory:
    """What the process has allocated, as a call says it grows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used = 0
        self.cpu = 0.0
        monkeypatch.setattr(module, "allocated", lambda: self.used)
        monkeypatch.setattr(time, "thread_time", lambda: self.cpu)

    def grow(self, mebibytes: float, seconds: float = 1.0) -> object:
        self.used += int(mebibytes * MIB)
        self.cpu += seconds
        return object()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch)


def test_kept_within_bytes_the_least_recently_used_goes_first(memory: Memory) -> None:
    grammars = CompiledGrammars(32 * MIB)
    for name in "abc":
        grammars.compile(name, lambda: memory.grow(9))
    assert grammars.get("a") is not None
    grammars.compile("d", lambda: memory.grow(9))
    assert [grammars.get(name) is not None for name in "abcd"] == [True, False, True, True]
    assert grammars.evictions == 1 and grammars.num_kept == 3


def test_what_following_adds_counts(memory: Memory) -> None:
    grammars = CompiledGrammars(32 * MIB)
    first = grammars.compile("a", lambda: memory.grow(1))
    grammars.compile("b", lambda: memory.grow(1))
    for _ in range(8):
        with grammars.watched(first):
            memory.grow(4)
    assert first.num_bytes > 32 * MIB
    assert grammars.get("a") is None and grammars.num_kept == 1  # `a` was the older one
    assert grammars.num_bytes > 33 * MIB  # it is followed still
    del first
    assert grammars.num_bytes < 2 * MIB


def test_one_grammar_has_an_end(memory: Memory) -> None:
    grammars = CompiledGrammars()
    other = grammars.compile("b", lambda: memory.grow(1))
    with pytest.raises(TooExpensive, match="64 MiB"):
        grammars.compile("a", lambda: memory.grow(70))
    with pytest.raises(TooExpensive), grammars.watched(other):
        memory.grow(70)
    assert grammars.num_kept == 0


def test_the_largest_ends_where_all_together_are_too_large(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIVE_BYTES", 100 * MIB)
    grammars = CompiledGrammars(0)
    live = [grammars.compile(name, lambda: memory.grow(1)) for name in "abcd"]
    for each in live[:2]:
        with grammars.watched(each):
            memory.grow(45)
    with pytest.raises(TooExpensive, match="more than others"), grammars.watched(live[1]):
        memory.grow(10)
    with grammars.watched(live[2]):
        memory.grow(1)


def test_a_call_is_charged_no_more_than_its_time_allows(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads allocate beside it; where nobody says how much, its time alone counts."""
    grammars = CompiledGrammars()
    one = grammars.compile("a", lambda: memory.grow(0, 0.0))
    with grammars.watched(one):
        memory.grow(500, 0.001)
    assert one.num_bytes < MIB
    with grammars.watched(one):
        memory.grow(500, 0.00001)  # too short to be looked at
    assert one.num_bytes < MIB
    monkeypatch.setattr(module, "allocated", lambda: None)
    before = one.num_bytes
    with grammars.watched(one):
        memory.grow(0, 0.01)
    assert one.num_bytes - before == int(0.01 * module.BYTES_PER_S) or before < one.num_bytes
    assert before >= MIN_BYTES
