"""The store of responses: bounded, least recently used first, each key for itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import RequestError
from octavo.server.core.store import ResponseNotFound, ResponseStore, Stored


def stored(name: str, *, owner: str = "", previous: str | None = None, size: int = 10) -> Stored:
    return Stored(name, owner, previous, b"x" * size, b"[]", (f"item-{name}",))


def test_the_least_recently_used_go_first() -> None:
    store = ResponseStore(max_responses=3)
    for name in "abc":
        store.put(stored(name))
    store.get("a", "")
    store.put(stored("d"))
    assert [store.get(name, "").id for name in "acd"] == ["a", "c", "d"]
    with pytest.raises(ResponseNotFound, match="'b'"):
        store.get("b", "")
    assert store.holder("item-b", "") is None and store.holder("item-a", "") is not None


def test_a_chain_is_as_fresh_as_its_end() -> None:
    store = ResponseStore(max_responses=3)
    store.put(stored("a"))
    store.put(stored("b", previous="a"))
    store.put(stored("c"))
    assert [s.id for s in store.chain("b", "")] == ["a", "b"]
    store.put(stored("d"))
    assert [s.id for s in store.chain("b", "")] == ["a", "b"]
    store.delete("a", "")
    with pytest.raises(RequestError) as refused:
        store.chain("b", "")
    assert refused.value.code == "previous_response_not_found" and "'b'" in refused.value.message


def test_others_do_not_see_it() -> None:
    store = ResponseStore()
    store.put(stored("a", owner="me"))
    for call in (store.get, store.delete):
        with pytest.raises(ResponseNotFound):
            call("a", "you")
    with pytest.raises(RequestError):
        store.chain("a", "you")
    assert store.holder("item-a", "you") is None and store.get("a", "me").id == "a"


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
                    (store.get if what == "g" else store.delete)(known, "")
                except ResponseNotFound:
                    names.discard(known)
        alive = [store._found[name] for name in store._found]
        assert len(store) <= 5 and store.num_bytes == sum(s.num_bytes for s in alive) <= 2000
        assert set(store._of_item.values()) == {s.id for s in alive}
