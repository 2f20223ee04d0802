"""What a runner is put together from, once over a single block of each cache group to learn what a step takes, then
over all of them.

On a device the order is: activations of the largest steps, then the graphs on trial (with one block: they take what
they will take over all), then the blocks out of what is left, then the graphs that stay. Nothing is sized by guessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from octavo.cachespec import paged_groups
from octavo.config.memory import MemoryUse, host_blocks, num_checkpoints, plan_blocks, state_bytes
from octavo.config.resolve import ResolvedConfig
from octavo.kernels.ops import Ops
from octavo.kernels.step import LayerCache, PagedCache
from octavo.modelfiles.facts import ModelFacts
from octavo.models.decoder import Model
from octavo.worker import kv, profile
from octavo.worker.batch import Batch
from octavo.worker.device import Device
from octavo.worker.device_queue import DeviceQueue
from octavo.worker.device_rows import make_rows
from octavo.worker.device_steps import DeviceSteps
from octavo.worker.eager import EagerSteps
from octavo.worker.graphs import Computation, DecodeGraphs, bucket_sizes
from octavo.worker.runner import Runner
from octavo.worker.sampler import Sampler


class Parts(Protocol):
    def runner(self) -> tuple[Runner, tuple[int, ...], list[str]]:
        """The runner over all blocks there is memory for, their number in each cache group, and notes for the user on
        what takes how much. Raises OutOfMemory."""
        ...


def make_batch(facts: ModelFacts, resolved: ResolvedConfig) -> Batch:
    windows = [group.window for group in paged_groups(facts.cache_specs)]
    return Batch(resolved.max_num_seqs, resolved.max_model_len, resolved.block_size, windows)


def make_states(facts: ModelFacts, resolved: ResolvedConfig, ops: Ops) -> tuple[kv.States, kv.Checkpoints | None]:
    """What recurrent layers keep of every row, and where it is saved."""
    states, count = kv.states(facts, resolved, ops), num_checkpoints(resolved, facts)
    return states, kv.Checkpoints(states, count, ops.device) if count else None


class HostParts:
    def __init__(self, facts: ModelFacts, resolved: ResolvedConfig, ops: Ops, model: Model) -> None:
        self._facts, self._resolved, self._ops, self._model = facts, resolved, ops, model
        self._batch = make_batch(facts, resolved)
        self._states, self._checkpoints = make_states(facts, resolved, ops)
        self._sampler = Sampler(ops, resolved.max_num_seqs, facts.vocab_size, ops.device)

    def runner(self) -> tuple[Runner, tuple[int, ...], list[str]]:
        sizes = kv.sizes(self._facts, self._resolved, self._ops)
        trial = self._over([1] * len(sizes))
        workspace = trial.workspace or profile.measure(trial, self._resolved)  # which also warms libraries up
        fixed = self._model.nbytes + state_bytes(self._resolved, self._facts)
        blocks = host_blocks(self._resolved, sizes, fixed, workspace)
        return self._over(blocks), blocks, [f"workspace {workspace / kv.MIB:.0f} MiB"]

    def _over(self, blocks: Sequence[int]) -> Runner:
        resolved, model, ops, batch = self._resolved, self._model, self._ops, self._batch
        caches = kv.allocate(self._facts, resolved, ops, blocks, self._states)
        rows = batch.permanent(*self._sampler.settings)
        recorded = ops.record(model, caches, rows, resolved.max_num_batched_tokens, resolved.block_size)
        steps = recorded or EagerSteps(model, ops, caches, batch, self._facts.vocab_size)
        return Runner(model, caches, batch, self._sampler, steps, checkpoints=self._checkpoints)


class DeviceParts:
    def __init__(self, facts: ModelFacts, resolved: ResolvedConfig, ops: Ops, model: Model, device: Device) -> None:
        self._facts, self._resolved, self._ops, self._model = facts, resolved, ops, model
        self._device = device
        self._batch = make_batch(facts, resolved)
        self._states, self._checkpoints = make_states(facts, resolved, ops)
        self._queue = DeviceQueue(device, self._batch)
        self._sampler = Sampler(ops, resolved.max_num_seqs, facts.vocab_size, device.where, self._queue)
        self._state = self._queue.state = make_rows(self._batch, self._sampler.settings[1])
        self._sizes = bucket_sizes(min(resolved.max_num_seqs, resolved.max_num_batched_tokens))

    def runner(self) -> tuple[Runner, tuple[int, ...], list[str]]:
        facts, resolved, device = self._facts, self._resolved, self._device
        sizes = kv.sizes(facts, resolved, self._ops)
        caches = kv.allocate(facts, resolved, self._ops, [2] * len(sizes), self._states)
        activations = profile.measure_on(device, self._over(caches, None), resolved, facts.vocab_size)
        graphs = 0 if resolved.enforce_eager else self._trial(caches)
        del caches
        memory = device.memory()  # weights and tables are there, other processes too, neither graphs nor activations
        states = state_bytes(resolved, facts)
        use = MemoryUse(memory.total, memory.free, self._model.nbytes, activations, graphs, sizes, states)
        plan = plan_blocks(resolved, use)
        caches = kv.allocate(facts, resolved, self._ops, [count + 1 for count in plan.blocks], self._states)
        captured, notes = None, plan.notes()
        if not resolved.enforce_eager:
            captured = self._graphs(caches)
            taken = captured.capture(budget=graphs)
            notes.append(
                f"graphs of {len(captured.sizes)} batch sizes up to {captured.sizes[-1]}: {taken / kv.MIB:.0f} MiB of "
                f"the {graphs / kv.MIB:.0f} set aside"
            )
        return self._over(caches, captured), plan.blocks, notes

    def _trial(self, caches: Sequence[LayerCache]) -> int:
        """Bytes that all graphs will take: of the largest, and for each other what a further one added."""
        largest = self._graphs(caches).capture([self._sizes[-1]])
        others = self._sizes[:-1]
        if not others:
            return largest
        tried = others[:2]
        more = self._graphs(caches).capture([self._sizes[-1], *tried])
        return largest + -(-max(more - largest, 0) * len(others) // len(tried))

    def _graphs(self, caches: Sequence[LayerCache]) -> DecodeGraphs:
        return DecodeGraphs(self._computation(caches), self._device, self._sizes, self._facts.hidden_size)

    def _computation(self, caches: Sequence[LayerCache]) -> Computation:
        for cache in caches:
            if isinstance(cache, PagedCache):  # the last block is the padding's
                self._state.block_tables[cache.group, -1] = cache.blocks.shape[1] - 1
        resolved = self._resolved
        return Computation(
            self._model, self._ops, caches, self._state, self._sampler.settings[0], resolved.block_size,
            resolved.max_model_len,
        )  # fmt: skip

    def _over(self, caches: Sequence[LayerCache], graphs: DecodeGraphs | None) -> Runner:
        parts = self._computation(caches) if graphs is None else graphs.parts
        steps = DeviceSteps(parts, self._queue, self._batch, self._facts.vocab_size, graphs)
        return Runner(self._model, caches, self._batch, self._sampler, steps, self._queue, self._checkpoints)
