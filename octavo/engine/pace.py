"""How many prompt tokens a step may compute beside the streams that decode, so that these hardly feel it.

Owned by engine/planner.py; engine/loop.py measures the steps. Integers only: microseconds and tokens. A step with
prompts may take STRETCH times as long as one that only decodes the same streams; the cost of a prompt token beside
them is learned from the steps themselves. Where more requests wait for their first token than streams run, the many
come first: what their prompts cost is then shared by fewer. Results do not depend on how prompts are cut, so this
changes times only. Invariant: a prompt always gets on, by FLOOR tokens a step.
"""

from __future__ import annotations

STRETCH_PERCENT = 220
FLOOR = 8
CROWD = 4
"""With W requests beyond the first waiting and D streams decoding, a step may take CROWD · W / D times longer still."""
_OUTLIER = 4
"""What takes so many times longer than usual was not the step's own doing; it counts as that long."""


class Pace:
    def __init__(self, budget: int, max_decodes: int) -> None:
        self._budget = budget
        self._decode_us = [0] * (max_decodes + 1)
        """By the number of streams: what a step that only decodes them takes, 0 while unknown."""
        self._beside_ns = 0
        """A prompt token beside decoding streams; 0 while unknown."""
        self._alone_ns = 0
        """A prompt token in a step of prompts only."""

    def observe(self, decodes: int, prompt_tokens: int, us: int) -> None:
        """A step of `decodes` streams and so many tokens of prompts took `us` microseconds."""
        if not prompt_tokens:
            self._decode_us[decodes] = _smooth(self._decode_us[decodes], us)
        elif not decodes:
            self._alone_ns = _smooth(self._alone_ns, us * 1000 // prompt_tokens)
        elif base := self._decoding(decodes):
            self._beside_ns = _smooth(self._beside_ns, max(us - base, 1) * 1000 // prompt_tokens)

    def prompt_tokens(self, decodes: int, prompts: int) -> int:
        """How many tokens of `prompts` waiting or unfinished prompts the next step may compute."""
        base = self._decoding(decodes) if decodes else 0
        cost = self._beside_ns or self._alone_ns
        if not base or not cost:
            return self._budget
        stretch = STRETCH_PERCENT * max(decodes, CROWD * (prompts - 1)) // decodes
        tokens = base * (stretch - 100) * 10 // cost
        return min(max(tokens, FLOOR), self._budget)

    def _decoding(self, decodes: int) -> int:
        """Of this many streams, else of the next smaller number that is known, else of a larger one."""
        known = self._decode_us
        if known[decodes]:
            return known[decodes]
        return next((us for us in known[decodes::-1] if us), next((us for us in known[decodes:] if us), 0))


def _smooth(before: int, now: int) -> int:
    return (3 * before + min(now, _OUTLIER * before)) // 4 or 1 if before else now
