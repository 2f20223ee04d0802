"""The engine's counters as a client has seen them grow.

An engine counts from its own start. Here what each of them has counted is added up, so the totals go on when an engine
is replaced and never fall; what it counted in the last moment before it died is lost.
"""

from __future__ import annotations

import msgspec

from octavo.wire.messages import Counters, Stats

COUNTERS = Counters.__struct_fields__


class Totals:
    def __init__(self) -> None:
        self.stats = Stats()
        """The gauges as last told, the counters in total."""
        self._instance: str | None = None
        self._last = Stats()

    def take(self, instance: str, stats: Stats) -> None:
        """What engine `instance` says now."""
        if instance != self._instance:
            self._instance, self._last = instance, Stats()
        total, last = self.stats, self._last
        grown = {name: getattr(total, name) + getattr(stats, name) - getattr(last, name) for name in COUNTERS}
        self.stats = msgspec.structs.replace(stats, **grown)
        self._last = stats

    def lose(self) -> None:
        """No engine is attached: nothing runs, waits or holds memory."""
        self.stats = Stats(**{name: getattr(self.stats, name) for name in COUNTERS})
