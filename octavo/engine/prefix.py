"""The prefix cache: finds the blocks of token sequences that were computed before, in every cache group.

Owned by the scheduler. A full block is known by a chained, keyed hash: digest(digest of the block before + token ids),
started from the request's salt; the key is drawn per engine, so collisions cannot be prepared, and a hit is confirmed
by comparing the tokens of all blocks from the first on, whether or not a group still has them: what is known of a block
is kept as long as a later one is. Eviction order is the pools' (least recently used).
Invariant: a block that can be found here is marked as cached in its pool, and the other way round.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

from octavo.engine.blocks import BlockPool

NONE = -1


class Node:
    """The tokens of one block after those of `parent`, and the `blocks` that hold what each group keeps of them, or
    NONE."""

    __slots__ = ("blocks", "num_users", "parent", "tokens")

    def __init__(self, parent: bytes, tokens: bytes, num_groups: int) -> None:
        self.parent, self.tokens = parent, tokens
        self.blocks = [NONE] * num_groups
        self.num_users = 0
        """Blocks here, and nodes that follow."""


class PrefixCache:
    """Keys are lists of digests, one per full block; the request keeps them so that none is computed twice."""

    def __init__(
        self, pools: Sequence[BlockPool], block_size: int, enabled: bool = True, secret: bytes | None = None
    ) -> None:
        self.enabled = enabled
        self._pools = pools
        self._block_size = block_size
        self._secret = secrets.token_bytes(32) if secret is None else secret
        self._nodes: dict[bytes, Node] = {}
        self._keys: list[dict[int, bytes]] = [{} for _ in pools]  # of each group: block → its node's key
        for group, pool in enumerate(pools):
            pool.on_evict = partial(self._forget, group)

    def __len__(self) -> int:
        """Blocks that can be found."""
        return sum(map(len, self._keys))

    def root(self, salt: str | None) -> bytes:
        """The parent of a sequence's first block; differs with the salt."""
        name = b"" if salt is None else b"s" + salt.encode("utf-8", "surrogatepass")
        return blake2b(name, digest_size=32, key=self._secret).digest()

    def extend_keys(self, keys: list[bytes], root: bytes, tokens: Sequence[int], num_blocks: int) -> None:
        """Appends to `keys` until it covers the first `num_blocks` blocks of `tokens`."""
        parent = keys[-1] if keys else root
        for block in range(len(keys), num_blocks):
            parent = blake2b(parent + self._tokens_of(tokens, block), digest_size=32, key=self._secret).digest()
            keys.append(parent)

    def lookup(self, keys: Sequence[bytes], root: bytes, tokens: Sequence[int]) -> list[Node]:
        """What is known of the leading blocks of `tokens`, as far as `keys` reach."""
        found: list[Node] = []
        parent = root
        for index, key in enumerate(keys):
            node = self._nodes.get(key)
            if node is None or node.parent != parent or node.tokens != self._tokens_of(tokens, index):
                break
            found.append(node)
            parent = key
        return found

    def has(self, group: int, key: bytes) -> bool:
        """The group's block of this key can be found."""
        node = self._nodes.get(key)
        return node is not None and node.blocks[group] != NONE

    def register(
        self, group: int, block: int, keys: Sequence[bytes], root: bytes, tokens: Sequence[int], index: int
    ) -> bool:
        """Makes `block`, the index-th of a sequence, findable. False when an equal one is known already: this one stays
        private to its request."""
        key = keys[index]
        node = self._nodes.get(key)
        if not self.enabled or (node is not None and node.blocks[group] != NONE):
            return False
        if node is None:
            node = self._add(keys, root, tokens, index)
        node.blocks[group] = block
        node.num_users += 1
        self._keys[group][block] = key
        self._pools[group].mark_cached(block)
        return True

    def unregister(self, group: int, block: int) -> None:
        """Its content turned out not to be there (the step that wrote it failed). Unknown blocks are ignored."""
        if block in self._keys[group]:
            self._forget(group, block)
            self._pools[group].unmark_cached(block)

    def check(self) -> None:
        followers = dict.fromkeys(self._nodes, 0)
        for key, node in self._nodes.items():
            if node.parent in followers and node.parent != key:
                followers[node.parent] += 1
        for key, node in self._nodes.items():
            known = [(group, block) for group, block in enumerate(node.blocks) if block != NONE]
            assert all(self._keys[group][block] == key for group, block in known)
            assert node.num_users == len(known) + followers[key] > 0, "what nobody needs is kept"
        for group, (keys, pool) in enumerate(zip(self._keys, self._pools, strict=True)):
            assert all(self._nodes[key].blocks[group] == block for block, key in keys.items())
            cached = {block for block in range(pool.num_blocks) if pool.is_cached(block)}
            assert cached == keys.keys(), "cached marks and entries differ"

    def _add(self, keys: Sequence[bytes], root: bytes, tokens: Sequence[int], index: int) -> Node:
        """The index-th node of a sequence, and those before it that are missing."""
        first = index
        while first > 0 and keys[first - 1] not in self._nodes:
            first -= 1
        for at in range(first, index + 1):
            self._nodes[keys[at]] = node = Node(
                keys[at - 1] if at else root, self._tokens_of(tokens, at), len(self._pools)
            )
            if at:
                self._nodes[keys[at - 1]].num_users += 1
        return node

    def _forget(self, group: int, block: int) -> None:
        key = self._keys[group].pop(block)
        self._nodes[key].blocks[group] = NONE
        node: Node | None = self._nodes[key]
        while node is not None:
            node.num_users -= 1
            if node.num_users:
                break
            del self._nodes[key]
            key = node.parent
            node = self._nodes.get(key)

    def _tokens_of(self, tokens: Sequence[int], index: int) -> bytes:
        start = index * self._block_size
        return array("i", tokens[start : start + self._block_size]).tobytes()
