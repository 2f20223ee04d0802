"""The scheduler's gauges and counters as the wire's Stats. Called by engine/loop.py, read-only."""

from __future__ import annotations

import time

from octavo.engine.scheduler import Scheduler
from octavo.wire.messages import Stats


def stats(scheduler: Scheduler, memory_mb: float) -> Stats:
    """`fragmentation` stays 0: any free page serves any request."""
    pool, counters = scheduler.pool, scheduler.counters
    grammars = None if scheduler.constraints is None else scheduler.constraints.grammars
    return Stats(
        num_waiting=scheduler.num_waiting,
        num_running=scheduler.num_running,
        blocks_total=pool.num_blocks,
        blocks_used=pool.num_held,
        blocks_cached=pool.num_idle,
        prefix_queries=counters.prefix_queries,
        prefix_hits=counters.prefix_hits,
        prompt_tokens=counters.prompt_tokens,
        generated_tokens=counters.generated_tokens,
        preemptions=counters.preemptions,
        aborts=counters.aborts,
        steps=counters.steps,
        step_failures=counters.step_failures,
        cpu_seconds=time.process_time(),
        memory_mb=memory_mb,
        grammar_bytes=0 if grammars is None else grammars.num_bytes,
        grammars_kept=0 if grammars is None else grammars.num_kept,
        grammar_evictions=0 if grammars is None else grammars.evictions,
    )
