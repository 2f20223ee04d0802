"""The worker: one device's model, KV pages and rows, from loading to shutdown. Driven by an executor.

States go one way: starting → loading → profiling → ready → running → draining, or failed from any of them. Plans are
run in ready and running only.
"""

from __future__ import annotations

import enum
import gc
import time
from collections import deque

import torch

from octavo.config.memory import num_checkpoints, state_bytes, total_bytes
from octavo.config.resolve import ResolvedConfig
from octavo.env import forced_backend, forced_isa
from octavo.errors import ConfigError, OutOfMemory
from octavo.kernels import registry
from octavo.modelfiles.facts import ModelFacts, read_facts
from octavo.modelfiles.files import ModelFiles
from octavo.models.registry import build
from octavo.rank import Rank
from octavo.wire.plan import GroupInfo, Masks, Plan, Result, WorkerInfo
from octavo.worker import kv
from octavo.worker.device import Device, open_device
from octavo.worker.loading import open_weights
from octavo.worker.parts import DeviceParts, HostParts, Parts
from octavo.worker.runner import Launched, Runner


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

    def __init__(
        self, resolved: ResolvedConfig, files: ModelFiles, device: Device | None = None, rank: Rank | None = None
    ) -> None:
        """`rank`: None is alone, on the device that `resolved` names; `device`: None is that of the rank."""
        self._resolved, self._files = resolved, files
        self._rank = rank or Rank.alone(resolved.device)
        self._device = device
        self._runner: Runner | None = None
        self._launched: deque[Launched] = deque()
        self.state = State.STARTING

    def start(self) -> WorkerInfo:
        """Load, profile, allocate pages. Raises ModelFileError, ConfigError, OutOfMemory."""
        assert self.state is State.STARTING, f"start() of a worker that is {self.state.value}"
        try:
            return self._start()
        except torch.OutOfMemoryError as error:
            stage, self.state = self.state, State.FAILED
            raise OutOfMemory(_NO_MEMORY[stage].format(str(error).partition(". ")[0])) from error
        except BaseException:
            self.state = State.FAILED
            raise

    def run(self, plan: Plan, masks: Masks | None = None) -> Result:
        """`launch` and `collect` in one."""
        self.launch(plan)
        if masks is not None:
            self.masks(masks)
        return self.collect()

    def launch(self, plan: Plan) -> None:
        """Gives the plan's work, up to the logits if it is masked; on a device it goes on while this returns. Raises
        whatever the step raised, and then there is nothing to collect; the worker stays usable, the plan's rows are to
        be released."""
        assert self._runner is not None, f"launch() of a worker that is {self.state.value}"
        self.state = State.RUNNING
        self._launched.append(self._runner.launch(plan))

    def masks(self, masks: Masks) -> None:
        """Gives the rest of the work of the plan launched last. Raises as `launch` does."""
        assert self._runner is not None, f"masks() of a worker that is {self.state.value}"
        launched = self._launched.pop()
        self._runner.sample(launched, masks)
        self._launched.append(launched)

    def collect(self) -> Result:
        """The result of the oldest plan launched. Raises as `launch` does, and DeviceLost."""
        assert self._runner is not None, f"collect() of a worker that is {self.state.value}"
        return self._runner.finish(self._launched.popleft())

    @property
    def is_lost(self) -> bool:
        """After an error: whether the device can do no more work for this process."""
        return self._device is not None and self._device.is_lost()

    def shutdown(self) -> None:
        """Idempotent; frees weights and pages."""
        if self.state is not State.FAILED:
            self.state = State.DRAINING
        self._runner = None
        self._launched.clear()
        gc.collect()

    def _start(self) -> WorkerInfo:
        resolved, began = self._resolved, time.monotonic()
        if self._rank.size > 1:
            raise ConfigError(f"{self._rank.size} ranks: a worker computes a whole model, no part of one yet")
        facts = read_facts(self._files, random_weights=resolved.load_format == "dummy")
        self._device = self._device or open_device(self._rank.device)
        ops = registry.choose(_spec(resolved, facts, self._rank), forced_backend())
        self.state = State.LOADING
        with open_weights(resolved, self._files, ops, self._rank, self._device) as checkpoint:
            model = build(facts, checkpoint, ops, resolved)
        loaded = time.monotonic()
        self.state = State.PROFILING
        parts: Parts
        if self._device is None:
            parts = HostParts(facts, resolved, ops, model)
        else:
            parts = DeviceParts(facts, resolved, ops, model, self._device)
        self._runner, blocks, notes = parts.runner()
        self.state = State.READY
        sizes = kv.sizes(facts, resolved, ops)
        kv_bytes = total_bytes(sizes, blocks)
        infos = [GroupInfo(count, resolved.block_size, size.window) for count, size in zip(blocks, sizes, strict=True)]
        return WorkerInfo(
            groups=tuple(infos),
            num_checkpoints=num_checkpoints(resolved, facts),
            vocab_size=facts.vocab_size,
            max_model_len=resolved.max_model_len,
            device=self._rank.device,
            dtype=resolved.dtype,
            backend=ops.name,
            weights_bytes=model.nbytes,
            kv_bytes=kv_bytes,
            hidden_size=facts.hidden_size,
            notes=[
                *ops.notes,
                f"weights {model.nbytes / kv.MIB:.0f} MiB in {loaded - began:.1f} s",
                *notes,
                f"set up in {time.monotonic() - loaded:.1f} s",
                f"KV pages {kv_bytes / kv.MIB:.0f} MiB ({resolved.kv_cache_dtype}): "
                f"{' + '.join(map(str, blocks))} pages of "
                f"{resolved.block_size} tokens",
                *_about_states(resolved, facts),
            ],
        )


_NO_MEMORY = {
    State.STARTING: "the GPU has no memory left to start with ({}); end what else runs there",
    State.LOADING: "the weights do not fit the GPU's memory ({}); take a smaller or a quantized model, or --device cpu",
    State.PROFILING: "the largest step does not fit beside the weights in the GPU's memory ({}); lower "
    "--max-num-batched-tokens, --max-num-seqs or --gpu-memory-utilization",
}
"""By the state in which memory ran out."""


def _about_states(resolved: ResolvedConfig, facts: ModelFacts) -> list[str]:
    if not (nbytes := state_bytes(resolved, facts)):
        return []
    count = num_checkpoints(resolved, facts)
    return [f"states {nbytes / kv.MIB:.0f} MiB: of {resolved.max_num_seqs} sequences, and {count} checkpoints"]


def _spec(resolved: ResolvedConfig, facts: ModelFacts, rank: Rank) -> registry.Spec:
    return registry.Spec(
        rank.device, resolved.dtype, resolved.kv_cache_dtype, resolved.threads, forced_isa(),
        attention=resolved.attention_backend, head_dim=facts.attention.head_dim, rank=rank,
    )  # fmt: skip
