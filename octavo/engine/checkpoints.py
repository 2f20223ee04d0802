"""Checkpoints of recurrent states: when one is made, and which are kept. Integers only.

Layers that keep states keep those of the last token alone, so a sequence can go on only where somebody has copied them.
A checkpoint holds the states of all such layers after a whole number of blocks. It is known to the prefix cache by the
block it follows, like the blocks of one more cache group, and given up when it was used longest ago. Nobody holds one
while going on after it: the plan that admits a request copies it before anything else is computed.

One is made where a prompt ends; where two sequences are seen to part, as others may come that begin alike; at every
`interval` tokens; and at the end of a step's part of a prompt, which is given up before all others. Runs end at those
places.

Owned by engine/tables.py. Invariant: a request holds the checkpoints it has had made until their tokens are known, and
then the prefix cache has them.
"""

from __future__ import annotations

from octavo.engine.blocks import BlockPool
from octavo.engine.prefix import PrefixCache
from octavo.engine.request import Request


class Checkpoints:
    """`group`: their place in the prefix cache, which knows `pool`."""

    def __init__(self, pool: BlockPool, prefix: PrefixCache, group: int, block_size: int, interval: int) -> None:
        assert interval % block_size == 0, f"checkpoints every {interval} tokens, blocks of {block_size}"
        self.pool, self.group = pool, group
        self._prefix, self._block_size, self._interval = prefix, block_size, interval

    def cut(self, request: Request, tokens: int) -> int:
        """How many of the next `tokens` tokens a run computes, to end at the next place for a checkpoint."""
        size, done = self._block_size, request.num_computed
        last = (len(request.token_ids) - 1) // size * size  # at least one token is computed after it
        places = (request.branch, last, (done // self._interval + 1) * self._interval)
        end = min([done + tokens, *(place for place in places if place > done)])
        if end < request.num_tokens and end - end % size > done:
            end -= end % size
        return end - done

    def is_due(self, end: int, samples: bool) -> bool:
        """Whether a run that ends there, and samples or not, leaves one."""
        return end % self._block_size == 0 and (not samples or end % self._interval == 0)

    def make(self, request: Request, end: int) -> int | None:
        """A place for that of the request's first `end` tokens; None where there is one, or no room in this plan."""
        block = end // self._block_size - 1
        if len(request.token_ids) >= end:
            self._prefix.extend_keys(request.keys, request.root, request.token_ids, block + 1)
            if self._prefix.has(self.group, request.keys[block]):
                return None
        if not self.pool.num_free:
            return None
        (place,) = self.pool.allocate(1)
        request.saved.append((block, place))
        return place

    def settle(self, request: Request) -> list[int]:
        """Once a plan is made and when tokens become known: makes findable what has been made of known tokens; → the
        places."""
        tokens, keys, found = request.token_ids, request.keys, []
        while request.saved and (request.saved[0][0] + 1) * self._block_size <= len(tokens):
            block, place = request.saved.pop(0)
            end = (block + 1) * self._block_size
            self._prefix.extend_keys(keys, request.root, tokens, block + 1)
            if self._prefix.register(self.group, place, keys, request.root, tokens, block):
                found.append(place)
            self.pool.release([place])
            passing = end % self._interval and end != request.branch and len(tokens) - end > self._block_size
            if passing and self.pool.is_idle(place):
                self.pool.give_up_first(place)
        return found

    def use(self, place: int) -> None:
        """A request goes on after it: it is the last that is given up."""
        self.pool.retain([place])
        self.pool.release([place])

    def drop(self, request: Request) -> None:
        """Gives back what nobody else can find."""
        self.pool.release([place for _, place in request.saved])
        request.saved = []
