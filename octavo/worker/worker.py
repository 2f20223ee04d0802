"""The worker: one device's model, KV pages and rows, from loading to shutdown. Driven by an executor.

States go one way: starting → loading → profiling → ready → running → draining, or failed from any of them. Plans are
run in ready and running only.
"""

from __future__ import annotations

import enum
import gc
import time

import torch

from octavo.config.resolve import ResolvedConfig
from octavo.env import forced_backend
from octavo.kernels import registry
from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import ModelFacts, read_facts
from octavo.modelfiles.files import ModelFiles
from octavo.models.decoder import Model
from octavo.models.registry import build
from octavo.weights.checkpoint import open_checkpoint
from octavo.wire.plan import Plan, Result, WorkerInfo
from octavo.worker import kv, profile
from octavo.worker.batch import Batch
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

    def run(self, plan: Plan) -> Result:
        """Raises whatever the step raised; the worker stays usable, the plan's rows are to be released."""
        assert self._runner is not None, f"run() of a worker that is {self.state.value}"
        self.state = State.RUNNING
        return self._runner.run(plan)

    def shutdown(self) -> None:
        """Idempotent; frees weights and pages."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING
        self._runner = None
        gc.collect()

    def _start(self) -> WorkerInfo:
        resolved, began = self._resolved, time.monotonic()
        torch.set_num_threads(resolved.threads)
        ops = registry.choose(resolved.device, resolved.dtype, forced_backend())
        self.state = State.LOADING
        facts = read_facts(self._files)
        with open_checkpoint(self._files) as checkpoint:
            model = build(facts, checkpoint, ops, resolved)
        loaded = time.monotonic()
        self.state = State.PROFILING
        batch = Batch(resolved.max_num_seqs, resolved.max_model_len, resolved.block_size)
        sampler = Sampler(ops, resolved.max_num_seqs, facts.vocab_size, resolved.device)
        workspace = self._profile(facts, model, ops, batch, sampler)
        blocks = kv.num_blocks(facts, resolved, model.nbytes, workspace)
        pages = kv.allocate(facts, resolved, blocks)
        self._runner = Runner(model, ops, pages, batch, sampler)
        self.state = State.READY
        kv_bytes = blocks * kv.block_bytes(facts, resolved)
        return WorkerInfo(
            num_blocks=blocks,
            vocab_size=facts.vocab_size,
            max_model_len=resolved.max_model_len,
            device=resolved.device,
            dtype=resolved.dtype,
            backend=ops.name,
            weights_bytes=model.nbytes,
            kv_bytes=kv_bytes,
            notes=[
                f"weights {model.nbytes / kv.MIB:.0f} MiB in {loaded - began:.1f} s",
                f"workspace {workspace / kv.MIB:.0f} MiB, profiled in {time.monotonic() - loaded:.1f} s",
                f"KV pages {kv_bytes / kv.MIB:.0f} MiB: {blocks} of {resolved.block_size} tokens",
            ],
        )

    def _profile(self, facts: ModelFacts, model: Model, ops: Ops, batch: Batch, sampler: Sampler) -> int:
        """Bytes of workspace; also warms up whatever libraries set up on first use."""
        return profile.measure(
            Runner(model, ops, kv.allocate(facts, self._resolved, 1), batch, sampler), self._resolved
        )
