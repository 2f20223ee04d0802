"""The scheduler's gauges and counters as the wire's Stats."""

from __future__ import annotations

import time

import msgspec

from octavo.engine.scheduler import Scheduler
from octavo.wire.messages import Stats


def stats(scheduler: Scheduler, memory_mb: float) -> Stats:
    """Blocks are those of all cache groups. `fragmentation` stays 0: any free one serves any request."""
    tables = scheduler.tables
    grammars = None if scheduler.constraints is None else scheduler.constraints.grammars
    counters = msgspec.structs.replace(
        scheduler.counters,
        cpu_seconds=time.process_time(),
        grammar_evictions=0 if grammars is None else grammars.evictions,
    )
    return Stats(
        **msgspec.structs.asdict(counters),
        num_waiting=scheduler.num_waiting,
        num_running=scheduler.num_running,
        blocks_total=tables.num_blocks,
        blocks_used=tables.num_held,
        blocks_cached=tables.num_idle,
        memory_mb=memory_mb,
        grammar_bytes=0 if grammars is None else grammars.num_bytes,
        grammars_kept=0 if grammars is None else grammars.num_kept,
    )
