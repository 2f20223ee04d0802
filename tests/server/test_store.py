"""The store of responses: bounded, least recently used first, each key for itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import RequestError
from octavo.server.core.store import (
    MAX_BYTES_IN_ALL,
    MAX_BYTES_OF_ONE,
    ResponseNotFound,
    ResponseStore,
    ResponseStores,
    Stored,
)


def stored(name: str, *, previous: str | None = None, size: int = 10) -> Stored:
    return Stored(name, previous, b"x" * size, ((f"item-{name}", b"{}"),), ())


def test_the_least_recently_used_go_first() -> None:
    store = ResponseStore(max_responses=3)
    for name in "abc":
        store.put(stored(name))
    store.get("a")
    store.put(stored("d"))
    assert [store.get(name).id for name in "acd"] == ["a", "c", "d"]
    with pytest.raises(ResponseNotFound, match="'b'"):
        store.get("b")
    assert store.item("item-b") is None and store.item("item-a") == b"{}"


def test_a_chain_is_as_fresh_as_its_end() -> None:
    store = ResponseStore(max_responses=3)
    store.put(stored("a"))
    store.put(stored("b", previous="a"))
    store.put(stored("c"))
    assert [s.id for s in store.chain("b")] == ["a", "b"]
    store.put(stored("d"))
    assert [s.id for s in store.chain("b")] == ["a", "b"]
    store.delete("a")
    with pytest.raises(RequestError) as refused:
        store.chain("b")
    assert refused.value.code == "previous_response_not_found" and "'b'" in refused.value.message


def test_nothing_of_a_key_changes_by_what_another_does() -> None:
    """T-TENANT"""
    stores = ResponseStores(num_keys=2)
    mine, yours = stores.of("me"), stores.of("you")
    mine.put(stored("a"))
    for _ in range(3):
        yours.put(stored("a", size=100))  # ids of mine, and more than fits
        for number in range(20):
            yours.put(stored(f"x{number}", size=MAX_BYTES_OF_ONE - 1000))
        yours.delete("x19")
    assert mine.get("a").body == b"x" * 10 and mine.item("item-a") == b"{}"
    assert len(mine) == 1 and stores.num_responses == 1 + len(yours)
    with pytest.raises(ResponseNotFound):
        mine.get("x18")


def test_all_keys_together_are_bounded() -> None:
    stores = ResponseStores(num_keys=1000)
    assert stores.of("a").max_bytes * 1000 <= MAX_BYTES_IN_ALL


def test_one_that_is_too_large_is_not_kept() -> None:
    store = ResponseStore()
    store.put(stored("a", size=MAX_BYTES_OF_ONE))
    assert not len(store) and not store.keeps(MAX_BYTES_OF_ONE + 1)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("pgd"), st.integers(0, 12), st.integers(0, 700)), max_size=60))
def test_it_never_holds_more_than_it_may(steps: list[tuple[str, int, int]]) -> None:
    store = ResponseStore(max_responses=5, max_bytes=2000)
    names: set[str] = set()
    for count, (what, number, size) in enumerate(steps):
        name = f"{number}-{count}"
        if what == "p":
            store.put(stored(name, size=size))
            names.add(name)
        else:
            for known in sorted(names)[:number]:
                try:
                    (store.get if what == "g" else store.delete)(known)
                except ResponseNotFound:
                    names.discard(known)
        alive = [store._found[name] for name in store._found]
        assert len(store) <= 5 and store.num_bytes == sum(s.num_bytes for s in alive) <= 2000
        assert set(store._of_item.values()) == {s.id for s in alive}
