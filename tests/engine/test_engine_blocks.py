"""The block pool and the prefix cache on their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine import prefix
from octavo.engine.blocks import BlockPool
from octavo.engine.prefix import NONE, PrefixCache


def test_pages_freed_last_are_used_first_and_fresh_ones_stay_untouched() -> None:
    pool = BlockPool(8)
    first = pool.allocate(3)
    assert first == [0, 1, 2]
    pool.release(first)
    assert pool.allocate(2) == [0, 1]
    assert pool.num_free == 6 and pool.num_held == 2
    pool.check([[0, 1]])


def test_cached_pages_are_evicted_last_and_least_recently_used_first() -> None:
    pool = BlockPool(4)
    evicted: list[int] = []
    pool.on_evict = evicted.append
    pages = pool.allocate(3)
    for page in pages:
        pool.mark_cached(page)
    pool.release(pages)
    assert pool.num_idle == 3 and pool.num_free == 4
    pool.retain([2])  # used again: now the youngest
    pool.release([2])
    assert pool.allocate(1) == [3]  # the one that was never cached
    assert pool.allocate(2) == [1, 0]  # tail of the sequence before its head
    assert evicted == [1, 0]
    assert pool.is_cached(2) and not pool.is_cached(0)


def test_a_shared_page_is_free_when_its_last_holder_leaves() -> None:
    pool = BlockPool(2)
    pages = pool.allocate(1)
    pool.retain(pages)
    pool.release(pages)
    assert pool.num_held == 1
    pool.release(pages)
    assert pool.num_held == 0
    with pytest.raises(AssertionError, match="released more often"):
        pool.release(pages)


def test_content_of_a_free_page_cannot_be_retained() -> None:
    pool = BlockPool(2)
    with pytest.raises(KeyError):
        pool.retain([0])


def test_check_finds_a_lost_page() -> None:
    pool = BlockPool(3)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="reference counts differ"):
        pool.check([])


def test_a_forgotten_idle_page_is_free_again() -> None:
    pool = BlockPool(1)
    (page,) = pool.allocate(1)
    pool.mark_cached(page)
    pool.release([page])
    pool.unmark_cached(page)
    assert pool.num_idle == 0 and pool.allocate(1) == [page]


def cached(tokens: list[int], salt: str | None = None, block_size: int = 4) -> tuple[PrefixCache, BlockPool, list[int]]:
    """A cache that knows all full pages of `tokens`."""
    pool = BlockPool(16)
    cache = PrefixCache([pool], block_size)
    full = len(tokens) // block_size
    pages, keys = pool.allocate(full), list[bytes]()
    cache.extend_keys(keys, cache.root(salt), tokens, full)
    for index, page in enumerate(pages):
        assert cache.register(0, page, keys, cache.root(salt), tokens, index)
    cache.check()
    return cache, pool, pages


def find(cache: PrefixCache, tokens: list[int], salt: str | None = None, block_size: int = 4) -> list[int]:
    keys: list[bytes] = []
    cache.extend_keys(keys, cache.root(salt), tokens, len(tokens) // block_size)
    return [node.blocks[0] for node in cache.lookup(keys, cache.root(salt), tokens) if node.blocks[0] != NONE]


def test_the_longest_common_prefix_is_found_in_whole_pages() -> None:
    tokens = list(range(12))
    cache, _, pages = cached(tokens)
    assert find(cache, tokens) == pages
    assert find(cache, tokens[:11]) == pages[:2]
    assert find(cache, [*tokens[:5], 99, *tokens[6:]]) == pages[:1]
    assert find(cache, [99, *tokens[1:]]) == []


def test_equal_tokens_after_another_beginning_are_not_the_same_page() -> None:
    cache, _, _ = cached([1, 2, 3, 4, 5, 6, 7, 8])
    assert find(cache, [5, 6, 7, 8]) == []


@given(st.text(max_size=4) | st.none(), st.text(max_size=4) | st.none())
def test_salts_keep_prefixes_apart(one: str | None, other: str | None) -> None:
    cache, _, pages = cached(list(range(4)), salt=one)
    assert find(cache, list(range(4)), salt=other) == (pages if one == other else [])


def test_a_lone_surrogate_is_a_salt_too() -> None:
    cache, _, pages = cached(list(range(4)), salt="\ud800")
    assert find(cache, list(range(4)), salt="\ud800") == pages


def test_keys_differ_between_engines() -> None:
    pool = BlockPool(1)
    assert PrefixCache([pool], 4).root("x") != PrefixCache([pool], 4).root("x")


def test_a_colliding_hash_is_no_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Colliding:
        def __init__(self, data: bytes, **_: object) -> None:
            pass

        def digest(self) -> bytes:
            return b"always the same"

    monkeypatch.setattr(prefix, "blake2b", Colliding)
    cache, _, pages = cached([1, 2, 3, 4])
    assert find(cache, [1, 2, 3, 4]) == pages
    assert find(cache, [1, 2, 3, 5]) == []


def test_an_equal_page_stays_private() -> None:
    tokens = [1, 2, 3, 4]
    cache, pool, pages = cached(tokens)
    (twin,) = pool.allocate(1)
    keys: list[bytes] = []
    cache.extend_keys(keys, cache.root(None), tokens, 1)
    assert not cache.register(0, twin, keys, cache.root(None), tokens, 0)
    assert find(cache, tokens) == pages
    pool.release([twin])
    assert not pool.is_cached(twin)


def test_evicted_and_unregistered_pages_are_not_found() -> None:
    tokens = list(range(8))
    cache, pool, pages = cached(tokens)
    cache.unregister(0, pages[1])
    cache.unregister(0, pages[1])  # no more known: ignored
    assert find(cache, tokens) == pages[:1]
    pool.release(pages)
    pool.allocate(16)
    assert find(cache, tokens) == [] and len(cache) == 0
    cache.check()


def test_a_disabled_cache_knows_nothing() -> None:
    pool = BlockPool(1)
    cache = PrefixCache([pool], 2, enabled=False)
    keys: list[bytes] = []
    cache.extend_keys(keys, cache.root(None), [1, 2], 1)
    assert not cache.register(0, pool.allocate(1)[0], keys, cache.root(None), [1, 2], 0)
    assert cache.lookup(keys, cache.root(None), [1, 2]) == []
