"""The blocks of running requests in every paged cache group: found, got, left behind, let go of. Integers only.

Owned by the planner. Each group has a pool of its own; a request has a block table in each, indexed by position //
block size, so all of them are equally long. Invariant: of a table, a request holds the entries from `num_left` of that
group on; what comes before it the group's window has left behind, and nobody looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from octavo.cachespec import first_needed
from octavo.engine.blocks import BlockPool
from octavo.engine.checkpoints import Checkpoints
from octavo.engine.prefix import NONE, PrefixCache
from octavo.engine.request import Request
from octavo.wire.plan import GroupInfo

Blocks = tuple[tuple[int, ...], ...]
"""Of each group."""


class Hit(NamedTuple):
    """What was computed before of a request's tokens."""

    blocks: Blocks
    """Its table in each group; nothing of it is held yet."""
    num_blocks: int = 0
    checkpoint: int | None = None
    """Of the states after them, in a model that keeps some."""
    branch: int = 0
    """Tokens up to which it could have been more, had there been a checkpoint; 0: it could not."""


class BlockTables:
    """`at_once`: most tokens that a step computes. `num_checkpoints`, `interval`: of recurrent states, 0 where no layer
    keeps any."""

    def __init__(
        self,
        groups: Sequence[GroupInfo],
        at_once: int,
        prefix_cache: bool,
        num_checkpoints: int = 0,
        interval: int = 0,
    ) -> None:
        self.groups = tuple(groups)
        self.pools = [BlockPool(group.num_blocks) for group in groups]
        self.block_size = groups[0].block_size
        assert all(group.block_size == self.block_size for group in groups)
        states = [BlockPool(num_checkpoints)] if num_checkpoints else []
        self.prefix = PrefixCache([*self.pools, *states], self.block_size, prefix_cache)
        self.checkpoints: Checkpoints | None = None
        if states and prefix_cache:
            self.checkpoints = Checkpoints(states[0], self.prefix, len(self.pools), self.block_size, interval)
        self.fresh: dict[int, list[tuple[int, int]]] = {}
        """Plan in flight → (group, block or checkpoint) that can be found on its account, to be taken back if it
        fails."""
        self._at_once = at_once
        self._windows = [(index, group.window) for index, group in enumerate(groups) if group.window is not None]

    @property
    def num_free(self) -> int:
        """Blocks that a table can be extended by in every group."""
        return min([pool.num_free for pool in self.pools])

    @property
    def num_held(self) -> int:
        return sum(pool.num_held for pool in self.pools)

    @property
    def num_idle(self) -> int:
        """Cached blocks that nobody holds."""
        return sum(pool.num_idle for pool in self.pools)

    @property
    def num_blocks(self) -> int:
        return sum(pool.num_blocks for pool in self.pools)

    def longest(self, max_model_len: int) -> int:
        """Tokens of the longest sequence that gets to its end alone."""
        for group in self.groups:
            if group.most_blocks(max_model_len, 1) > group.num_blocks:
                max_model_len = group.num_blocks * self.block_size
        return max_model_len

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    # --- what a request has

    def reach(self, request: Request) -> int:
        """Positions that its blocks have room for."""
        return len(request.block_ids[0]) * self.block_size

    def extend(self, request: Request, count: int) -> Blocks:
        """`count` further blocks in every group, as there are free ones for."""
        new = tuple(tuple(pool.allocate(count)) for pool in self.pools)
        for table, blocks in zip(request.block_ids, new, strict=True):
            table += blocks
        return new

    def leave_behind(self, request: Request) -> None:
        """Lets go of the blocks that no token still to be computed looks at."""
        for group, window in self._windows:
            first, left = first_needed(request.num_computed, window, self.block_size), request.num_left[group]
            if first > left:
                self.pools[group].release(request.block_ids[group][left:first])
                request.num_left[group] = first

    def release(self, request: Request) -> None:
        for pool, held in zip(self.pools, self.held(request), strict=True):
            pool.release(held)
        request.block_ids, request.num_left = [], []
        if self.checkpoints is not None:
            self.checkpoints.drop(request)

    def held(self, request: Request) -> list[list[int]]:
        return [table[left:] for table, left in zip(request.block_ids, request.num_left, strict=True)]

    def lacking(self, request: Request) -> list[int]:
        """Blocks in each group that its tokens so far still need."""
        tokens, found = len(request.token_ids), []
        for group, table, left in zip(self.groups, request.block_ids, request.num_left, strict=True):
            more = max(self.blocks(tokens) - len(table), 0)
            if group.window is not None:
                more = min(more, max(group.most_blocks(tokens, self._at_once) - (len(table) - left), 0))
            found.append(more)
        return found

    # --- blocks that were computed before

    def find(self, request: Request) -> Hit:
        """The longest cached prefix of its tokens: every block in a group without window, else those that the first
        token after it looks at; and a checkpoint at its end, where layers keep states."""
        if request.needs_whole_prompt or not self.prefix.enabled:
            return Hit(((),) * len(self.groups))
        full = (len(request.token_ids) - 1) // self.block_size  # at least one token is computed
        self.prefix.extend_keys(request.keys, request.root, request.token_ids, full)
        nodes = self.prefix.lookup(request.keys[:full], request.root, request.token_ids)
        counts = self._usable([node.blocks[: len(self.groups)] for node in nodes])
        count = whole = counts[-1] if counts else 0
        checkpoint = None
        if self.checkpoints is not None:
            states = self.checkpoints.group
            count = next((count for count in reversed(counts) if nodes[count - 1].blocks[states] != NONE), 0)
            checkpoint = nodes[count - 1].blocks[states] if count else None
        blocks = tuple(
            tuple(0 if at < first else nodes[at].blocks[group] for at in range(count))
            for group, first in enumerate(self._first(count))
        )
        return Hit(blocks, count, checkpoint, whole * self.block_size if whole > count else 0)

    def _first(self, count: int) -> list[int]:
        """The first block in each group that the token after `count` blocks looks at."""
        return [first_needed(count * self.block_size, group.window, self.block_size) for group in self.groups]

    def _usable(self, known: Sequence[Sequence[int]]) -> Sequence[int]:
        """After how many leading blocks a request can go on, ascending. `known`: of each, the block in every group, or
        NONE."""
        if not self._windows:
            return range(1, 1 + next((at for at, blocks in enumerate(known) if min(blocks) < 0), len(known)))
        usable, runs = [], [0] * len(self.groups)
        for count, blocks in enumerate(known, 1):
            runs = [run + 1 if block >= 0 else 0 for run, block in zip(runs, blocks, strict=True)]
            if all(run >= count - first for run, first in zip(runs, self._first(count), strict=True)):
                usable.append(count)
        return usable

    def cost(self, request: Request, hit: Hit) -> list[int]:
        """Free blocks in each group that admitting it takes away, until its tokens so far are computed."""
        tokens, found = len(request.token_ids), []
        firsts = self._first(hit.num_blocks)
        for group, pool, ids, first in zip(self.groups, self.pools, hit.blocks, firsts, strict=True):
            most = min(group.most_blocks(tokens, self._at_once), pool.num_blocks)
            found.append(most - sum(not pool.is_idle(block) for block in ids[first:]))
        return found

    def fits(self, cost: Iterable[int], promised: Iterable[int]) -> bool:
        """There are so many free blocks beside those that others have been promised."""
        return all(pool.num_free - p >= c for pool, c, p in zip(self.pools, cost, promised, strict=True))

    def take(self, request: Request, hit: Hit) -> None:
        """The request begins behind what was found."""
        request.block_ids = [list(ids) for ids in hit.blocks]
        request.num_left = self._first(hit.num_blocks)
        request.num_registered = hit.num_blocks
        for pool, held in zip(self.pools, self.held(request), strict=True):
            pool.retain(held)
        request.checkpoint, request.branch = hit.checkpoint, hit.branch
        if self.checkpoints is not None and hit.checkpoint is not None:
            self.checkpoints.use(hit.checkpoint)

    def register(self, request: Request, confirmed: int) -> None:
        """Makes full blocks findable whose tokens are known and computed by plans up to the request's last. Plans up
        to `confirmed` have succeeded; for later ones it is remembered, as they may fail."""
        self.settle(request, confirmed)
        full = min(request.num_computed, len(request.token_ids)) // self.block_size
        if full <= request.num_registered or not self.prefix.enabled:
            return
        tokens, keys = request.token_ids, request.keys
        self.prefix.extend_keys(keys, request.root, tokens, full)
        for index in range(request.num_registered, full):
            for group, (table, left) in enumerate(zip(request.block_ids, request.num_left, strict=True)):
                if index < left:  # it was let go of before its last token was known
                    continue
                new = self.prefix.register(group, table[index], keys, request.root, tokens, index)
                if new and request.last_plan > confirmed:
                    self.fresh.setdefault(request.last_plan, []).append((group, table[index]))
        request.num_registered = full

    def settle(self, request: Request, confirmed: int) -> None:
        """The same of the checkpoints that it has had made, by plans that are complete."""
        if self.checkpoints is None or not request.saved:
            return
        found = [(self.checkpoints.group, place) for place in self.checkpoints.settle(request)]
        if found and request.last_plan > confirmed:
            self.fresh.setdefault(request.last_plan, []).extend(found)

    def builds_on(self, request: Request, tainted: set[tuple[int, int]]) -> bool:
        """Whether what a request has computed, or will, hangs on any of these (group, block or checkpoint)."""
        if self.checkpoints is not None and (self.checkpoints.group, request.checkpoint) in tainted:
            return True
        return any((group, id) in tainted for group, table in enumerate(request.block_ids) for id in table)

    def take_back(self) -> set[tuple[int, int]]:
        """Forgets what can be found on account of plans in flight; → (group, block or checkpoint)."""
        tainted = {block for blocks in self.fresh.values() for block in blocks}
        self.fresh.clear()
        for group, block in tainted:
            self.prefix.unregister(group, block)
        return tainted

    def check(self, requests: Sequence[Request]) -> None:
        """Asserts that no block is lost, doubled or miscounted and that the prefix cache agrees, given all who hold
        some."""
        held = [self.held(request) for request in requests]
        for group, pool in enumerate(self.pools):
            pool.check(tables[group] for tables in held)
        if self.checkpoints is not None:
            self.checkpoints.pool.check([place for _, place in request.saved] for request in requests)
        for request in requests:
            assert len({len(table) for table in request.block_ids}) == 1, "tables of different lengths"
        self.prefix.check()
