"""Puts an engine together around a started executor: scheduler, info, loop. Called by engine/process.py and
client/local.py, so that an engine is the same in a process of its own and inside a script."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable

from octavo.config.resolve import ResolvedConfig
from octavo.engine.blame import Blame
from octavo.engine.constraints import Constraints
from octavo.engine.loop import EngineLoop
from octavo.engine.pace import UNFELT_US
from octavo.engine.scheduler import Scheduler, SchedulerConfig
from octavo.executor.base import Executor
from octavo.grammar.matcher import Vocabulary
from octavo.modelfiles.files import ModelFiles
from octavo.wire.messages import QUIET_S, EngineInfo
from octavo.wire.plan import WorkerInfo
from octavo.wire.transport import Transport


def build_loop(
    resolved: ResolvedConfig,
    files: ModelFiles,
    worker: WorkerInfo,
    executor: Executor,
    transport: Transport,
    *,
    quiet: float | None = QUIET_S,
    memory_mb: Callable[[], float] = lambda: 0.0,
    blame: Blame | None = None,
    vocabulary: Callable[[], Vocabulary] | None = None,
) -> tuple[EngineLoop, EngineInfo]:
    """`worker`: what `executor.start()` returned; `vocabulary`: makes what grammars need, None: from the files; the
    rest as in Scheduler and EngineLoop. → the loop and what it tells clients."""
    constraints = Constraints(vocabulary or (lambda: Vocabulary.load(files, worker.vocab_size)), transport.wake)
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=resolved.max_num_seqs,
            max_num_batched_tokens=resolved.max_num_batched_tokens,
            max_model_len=worker.max_model_len,
            max_queued_requests=resolved.options.max_queued_requests,
            groups=worker.groups,
            vocab_size=worker.vocab_size,
            prefix_cache=resolved.options.prefix_cache,
            num_checkpoints=worker.num_checkpoints,
            checkpoint_interval=resolved.options.state_checkpoint_interval,
            unfelt_us=0 if resolved.device == "cpu" else UNFELT_US,
        ),
        constraints,
        blame,
    )
    info = EngineInfo(
        instance=uuid.uuid4().hex,
        pid=os.getpid(),
        model=resolved.served_model_name,
        aliases=resolved.model_aliases,
        model_path=files.address,
        max_model_len=scheduler.max_len,
        max_num_seqs=resolved.max_num_seqs,
        block_size=resolved.block_size,
        num_blocks=sum(group.num_blocks for group in worker.groups),
        vocab_size=worker.vocab_size,
        hidden_size=worker.hidden_size,
        device=worker.device,
        dtype=worker.dtype,
        backend=worker.backend,
        max_queued_requests=resolved.options.max_queued_requests,
        seed=resolved.options.seed,
    )
    loop = EngineLoop(scheduler, executor, transport, info, quiet=quiet, memory_mb=memory_mb)
    return loop, info
