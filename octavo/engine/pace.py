"""How many prompt tokens a step may compute beside the streams that decode, so that these hardly feel it.

Owned by engine/planner.py; engine/loop.py measures the steps. Integers only: microseconds and tokens. A step with
prompts may take STRETCH times as long as one that only decodes the same streams; the cost of a prompt token beside
them is learned from the steps themselves. Where more requests wait for their first token than streams run, the many
come first: what their prompts cost is then shared by fewer. On a GPU a step with prompts costs much, however few, and
one that only decodes little: there a step may also take as long as nobody feels. Results do not depend on how prompts
are cut, so this changes times only. Invariant: a prompt always gets on, by FLOOR tokens a step.
"""

from __future__ import annotations

STRETCH_PERCENT = 220
FLOOR = 8
CROWD = 4
"""With W requests beyond the first waiting and D streams decoding, a step may take CROWD · W / D times longer still."""
_OUTLIER = 4
"""What takes so many times longer than usual was not the step's own doing; it counts as that long."""


_OVER = 3
"""Beside streams a prompt token costs at most so many times what it costs in a step of its own; what is beyond that is
an error of the estimate, which would feed itself: fewer tokens, each with more of the error."""


UNFELT_US = 25_000
"""On a GPU a step with prompts may take so long in any case: forty tokens a second are more than one reads."""


class Pace:
    def __init__(self, budget: int, max_decodes: int, unfelt_us: int = 0) -> None:
        self._budget = budget
        self._unfelt_us = unfelt_us
        self._decode_us = [0] * (max_decodes + 1)
        """By the number of streams: what a step that only decodes them takes, 0 while unknown."""
        self._alone_ns = 0
        """A prompt token in a step of prompts only, 0 while unknown."""
        self._beside_ns = self._beside_tokens = 0
        """What prompts took beside streams, and how many tokens that was: the latest steps count most."""

    def observe(self, decodes: int, prompt_tokens: int, us: int) -> None:
        """A step of `decodes` streams and so many tokens of prompts took `us` microseconds."""
        if not prompt_tokens:
            self._decode_us[decodes] = _smooth(self._decode_us[decodes], us)
        elif not decodes:
            self._alone_ns = _smooth(self._alone_ns, us * 1000 // prompt_tokens)
        elif base := self._decoding_us(decodes):
            self._beside_ns = self._beside_ns * 3 // 4 + max(us - base, 1) * 1000
            self._beside_tokens = self._beside_tokens * 3 // 4 + prompt_tokens

    def prompt_tokens(self, decodes: int, prompts: int) -> int:
        """How many tokens of `prompts` waiting or unfinished prompts the next step may compute."""
        base = self._decoding_us(decodes) if decodes else 0
        cost = self._token_ns()
        if not base or not cost:
            return self._budget
        stretch = STRETCH_PERCENT * max(decodes, CROWD * (prompts - 1)) // decodes
        tokens = max(base * (stretch - 100) * 10, (self._unfelt_us - base) * 1000) // cost
        return min(max(tokens, FLOOR), self._budget)

    def _token_ns(self) -> int:
        """A prompt token beside streams; 0 while unknown."""
        if not self._beside_tokens:
            return self._alone_ns
        beside = self._beside_ns // self._beside_tokens or 1
        return min(beside, _OVER * self._alone_ns) if self._alone_ns else beside

    def _decoding_us(self, decodes: int) -> int:
        """A step of so many streams: as measured, else from the nearest number that was, a stream more costing what a
        prompt's token does; 0 while nothing is known."""
        known = self._decode_us
        if known[decodes]:
            return known[decodes]
        counts = [count for count, us in enumerate(known) if us]
        if not counts:
            return 0
        nearest = min(counts, key=lambda count: abs(count - decodes))
        us = known[nearest]
        return max(us + (decodes - nearest) * self._alone_ns // 1000, us // 2)


def _smooth(before: int, now: int) -> int:
    return (3 * before + min(now, _OUTLIER * before)) // 4 or 1 if before else now
