"""The worker: one device's model, KV pages and rows, from loading to shutdown. Driven by an executor.

States go one way: starting → loading → profiling → ready → running → draining, or failed from any of them. Plans are
run in ready and running only.
"""

from __future__ import annotations

import enum
import gc
import time

from octavo.config.resolve import ResolvedConfig
from octavo.env import forced_backend, forced_isa
from octavo.kernels import registry
from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import ModelFacts, read_facts
from octavo.modelfiles.files import ModelFiles
from octavo.models.decoder import Model
from octavo.models.registry import build
from octavo.weights.checkpoint import open_checkpoint
from octavo.wire.plan import Masks, Plan, Result, WorkerInfo
from octavo.worker import kv, profile
from octavo.worker.batch import Batch
from octavo.worker.eager import EagerSteps
from octavo.worker.runner import Runner
from octavo.worker.sampler import Sampler


class State(enum.Enum):
    STARTING = "starting"
    LOADING = "loading"
    PROFILING = "profiling"
    READY = "ready"
    RUNNING = "running"
    DRAINING = "draining"
    FAILED = "failed"


class Worker:
    """Implements what executors drive. Not thread-safe: one thread starts it, runs plans and shuts it down."""

    def __init__(self, resolved: ResolvedConfig, files: ModelFiles) -> None:
        self._resolved, self._files = resolved, files
        self._runner: Runner | None = None
        self.state = State.STARTING

    def start(self) -> WorkerInfo:
        """Load, profile, allocate pages. Raises ModelFileError, ConfigError, OutOfMemory."""
        assert self.state is State.STARTING, f"start() of a worker that is {self.state.value}"
        try:
            return self._start()
        except BaseException:
            self.state = State.FAILED
            raise

    def run(self, plan: Plan, masks: Masks | None = None) -> Result:
        """`masks`: as wire/plan.py has them. Raises whatever the step raised; the worker stays usable, the plan's rows
        are to be released."""
        assert self._runner is not None, f"run() of a worker that is {self.state.value}"
        self.state = State.RUNNING
        return self._runner.run(plan, masks)

    def shutdown(self) -> None:
        """Idempotent; frees weights and pages."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING
        self._runner = None
        gc.collect()

    def _start(self) -> WorkerInfo:
        resolved, began = self._resolved, time.monotonic()
        facts = read_facts(self._files)
        ops = registry.choose(_spec(resolved, facts), forced_backend())
        self.state = State.LOADING
        with open_checkpoint(self._files) as checkpoint:
            model = build(facts, checkpoint, ops, resolved)
        loaded = time.monotonic()
        self.state = State.PROFILING
        parts = _Parts(facts, resolved, ops, model)
        workspace = parts.workspace()
        blocks = kv.num_blocks(resolved, parts.block_bytes, model.nbytes, workspace)
        self._runner = parts.runner(blocks)
        self.state = State.READY
        kv_bytes = blocks * parts.block_bytes
        return WorkerInfo(
            num_blocks=blocks,
            vocab_size=facts.vocab_size,
            max_model_len=resolved.max_model_len,
            device=resolved.device,
            dtype=resolved.dtype,
            backend=ops.name,
            weights_bytes=model.nbytes,
            kv_bytes=kv_bytes,
            hidden_size=facts.hidden_size,
            notes=[
                *ops.notes,
                f"weights {model.nbytes / kv.MIB:.0f} MiB in {loaded - began:.1f} s",
                f"workspace {workspace / kv.MIB:.0f} MiB, found in {time.monotonic() - loaded:.1f} s",
                f"KV pages {kv_bytes / kv.MIB:.0f} MiB ({resolved.kv_cache_dtype}): {blocks} of {resolved.block_size} "
                "tokens",
            ],
        )


def _spec(resolved: ResolvedConfig, facts: ModelFacts) -> registry.Spec:
    return registry.Spec(
        resolved.device, resolved.dtype, resolved.kv_cache_dtype, resolved.threads, forced_isa(),
        attention=resolved.attention_backend, head_dim=facts.head_dim,
    )  # fmt: skip


class _Parts:
    """What a runner is put together from: once over a single page to learn the workspace, then over all of them."""

    def __init__(self, facts: ModelFacts, resolved: ResolvedConfig, ops: Ops, model: Model) -> None:
        self._facts, self._resolved, self._ops, self._model = facts, resolved, ops, model
        self._batch = Batch(resolved.max_num_seqs, resolved.max_model_len, resolved.block_size)
        self._sampler = Sampler(ops, resolved.max_num_seqs, facts.vocab_size, resolved.device)
        self.block_bytes = kv.block_bytes(facts, resolved, ops)

    def workspace(self) -> int:
        """Bytes of the largest step: known when steps are recorded, else measured, which also warms libraries up."""
        runner = self.runner(1)
        return runner.workspace or profile.measure(runner, self._resolved)

    def runner(self, blocks: int) -> Runner:
        resolved, model, ops, batch = self._resolved, self._model, self._ops, self._batch
        pages = kv.allocate(self._facts, resolved, ops, blocks)
        rows = batch.permanent(*self._sampler.settings)
        recorded = ops.record(model, pages, rows, resolved.max_num_batched_tokens, resolved.block_size)
        steps = recorded or EagerSteps(model, ops, pages, batch, self._facts.vocab_size)
        return Runner(model, pages, batch, self._sampler, steps, recorded)
