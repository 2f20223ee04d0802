"""The pool of KV pages: who may write where. Integers only; the tensors behind them live in worker/kv.py.

Owned by the scheduler; the prefix cache marks pages as cached here. Every page is in exactly one of three places:
*held* (by one or more requests, counted), *cached* (held by nobody, content still found by the prefix cache, in
order of last use) or *free* (content worthless). Invariant: a page is written only while one request holds it.

Allocation takes the page freed last first, so pages that were never touched stay untouched (their memory is not
resident), and evicts the cached page that was used longest ago only when no free one is left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence


class BlockPool:
    """Reference-counted pages 0..num_blocks-1. All operations cost O(1) per page."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0
        self.num_blocks = num_blocks
        self.on_evict: Callable[[int], None] | None = None
        """Called with a cached page just before it is handed out for other content."""
        self._refs = [0] * num_blocks
        self._cached = bytearray(num_blocks)
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack, page 0 on top
        self._idle: OrderedDict[int, None] = OrderedDict()  # cached and held by nobody, longest unused first

    @property
    def num_free(self) -> int:
        """Pages that `allocate` could hand out: free ones and cached ones that nobody holds."""
        return len(self._free) + len(self._idle)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_idle(self) -> int:
        """Cached pages that nobody holds."""
        return len(self._idle)

    def is_cached(self, page: int) -> bool:
        return bool(self._cached[page])

    def is_idle(self, page: int) -> bool:
        return page in self._idle

    def allocate(self, count: int) -> list[int]:
        """`count` pages for new content, each held once. The caller has checked `num_free`."""
        assert count <= self.num_free, f"{count} pages wanted, {self.num_free} free"
        pages = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _unused = self._idle.popitem(last=False)
                self._cached[page] = 0
                if self.on_evict is not None:
                    self.on_evict(page)
            self._refs[page] = 1
            pages.append(page)
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        """One more holder for pages that are held or cached."""
        for page in pages:
            if self._refs[page] == 0:
                del self._idle[page]  # KeyError: the page is free, its content is gone
            self._refs[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less. Pages of a sequence are given in its order: its tail is then evicted before its head."""
        for page in reversed(pages):
            refs = self._refs[page] - 1
            assert refs >= 0, f"page {page} released more often than held"
            self._refs[page] = refs
            if refs == 0:
                if self._cached[page]:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def give_up_first(self, page: int) -> None:
        """Of the cached pages that nobody holds, this one is the next to be handed out."""
        self._idle.move_to_end(page, last=False)

    def mark_cached(self, page: int) -> None:
        """The prefix cache can find this held page."""
        assert self._refs[page] > 0 and not self._cached[page]
        self._cached[page] = 1

    def unmark_cached(self, page: int) -> None:
        """The prefix cache has forgotten this page; when nobody holds it, it is free."""
        assert self._cached[page]
        self._cached[page] = 0
        if self._refs[page] == 0:
            del self._idle[page]
            self._free.append(page)

    def check(self, tables: Iterable[Sequence[int]] = ()) -> None:
        """Asserts that no page is lost, doubled or miscounted, given the block tables of all holders."""
        held = [0] * self.num_blocks
        for table in tables:
            for page in table:
                held[page] += 1
        assert held == self._refs, "reference counts differ from the block tables"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        for page, refs in enumerate(self._refs):
            assert refs >= 0
            places = (refs > 0) + (page in free) + (page in self._idle)
            assert places == 1, f"page {page} is in {places} places"
            assert page not in free or not self._cached[page], f"free page {page} is marked as cached"
            assert page not in self._idle or self._cached[page], f"idle page {page} is not marked as cached"
