"""The prefix cache: finds the KV pages of token sequences that were computed before.

Owned by the scheduler. A full page is known by a chained, keyed hash: digest(digest of the page before + token ids),
started from the request's salt; the key is drawn per engine, so collisions cannot be prepared, and a hit is confirmed
by comparing its tokens and its parent all the same. Eviction order is the pool's (least recently used).
Invariant: a page that can be found here is marked as cached in the pool, and the other way round.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from octavo.engine.blocks import BlockPool


class _Entry(NamedTuple):
    key: bytes
    parent: bytes
    tokens: bytes


class PrefixCache:
    """Keys are lists of digests, one per full page; the request keeps them so that none is computed twice."""

    def __init__(self, pool: BlockPool, block_size: int, enabled: bool = True, secret: bytes | None = None) -> None:
        self.enabled = enabled
        self._pool = pool
        self._block_size = block_size
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._pages: dict[bytes, int] = {}
        self._entries: dict[int, _Entry] = {}
        pool.on_evict = self._forget

    def __len__(self) -> int:
        return len(self._entries)

    def root(self, salt: str | None) -> bytes:
        """The parent of a sequence's first page; differs with the salt."""
        name = b"" if salt is None else b"s" + salt.encode("utf-8", "surrogatepass")
        return blake2b(name, digest_size=32, key=self._secret).digest()

    def extend_keys(self, keys: list[bytes], root: bytes, tokens: Sequence[int], num_pages: int) -> None:
        """Appends to `keys` until it covers the first `num_pages` pages of `tokens`."""
        parent = keys[-1] if keys else root
        for page in range(len(keys), num_pages):
            parent = blake2b(parent + self._page_bytes(tokens, page), digest_size=32, key=self._secret).digest()
            keys.append(parent)

    def lookup(self, keys: Sequence[bytes], root: bytes, tokens: Sequence[int]) -> list[int]:
        """Pages of the longest cached prefix of `tokens`, as far as `keys` reach. They are not retained yet."""
        found: list[int] = []
        parent = root
        for index, key in enumerate(keys):
            page = self._pages.get(key)
            if page is None:
                break
            entry = self._entries[page]
            if entry.parent != parent or entry.tokens != self._page_bytes(tokens, index):
                break
            found.append(page)
            parent = key
        return found

    def register(self, page: int, keys: Sequence[bytes], root: bytes, tokens: Sequence[int], index: int) -> bool:
        """Makes `page`, the index-th of a sequence, findable. False when an equal page is known already: this one
        stays private to its request."""
        key = keys[index]
        if not self.enabled or key in self._pages:
            return False
        self._pages[key] = page
        self._entries[page] = _Entry(key, keys[index - 1] if index else root, self._page_bytes(tokens, index))
        self._pool.mark_cached(page)
        return True

    def unregister(self, page: int) -> None:
        """Its content turned out not to be there (the step that wrote it failed). Unknown pages are ignored."""
        if page in self._entries:
            self._forget(page)
            self._pool.unmark_cached(page)

    def check(self) -> None:
        assert len(self._pages) == len(self._entries)
        for key, page in self._pages.items():
            assert self._entries[page].key == key
        cached = {page for page in range(self._pool.num_blocks) if self._pool.is_cached(page)}
        assert cached == self._entries.keys(), "cached marks and entries differ"

    def _forget(self, page: int) -> None:
        del self._pages[self._entries.pop(page).key]

    def _page_bytes(self, tokens: Sequence[int], index: int) -> bytes:
        start = index * self._block_size
        return array("i", tokens[start : start + self._block_size]).tobytes()
