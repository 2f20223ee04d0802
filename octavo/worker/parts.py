"""What a runner is put together from, once over a single page to learn what a step takes, then over all of them. Used
by worker/worker after the model is loaded.

On a device the order is: activations of the largest steps, then the graphs on trial (with one page: they take what they
will take over all pages), then the pages out of what is left, then the graphs that stay. Nothing is sized by guessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from octavo.config.memory import host_pages
from octavo.config.resolve import ResolvedConfig
from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import ModelFacts
from octavo.models.decoder import Model
from octavo.worker import kv, profile
from octavo.worker.batch import Batch
from octavo.worker.device import Device
from octavo.worker.device_rows import make_rows
from octavo.worker.device_steps import DeviceSteps
from octavo.worker.eager import EagerSteps
from octavo.worker.graphs import Computation, DecodeGraphs, bucket_sizes
from octavo.worker.lane import DeviceLane
from octavo.worker.runner import Runner
from octavo.worker.sampler import Sampler


class Parts(Protocol):
    def runner(self) -> tuple[Runner, int, list[str]]:
        """The runner over all pages there is memory for, their number, and notes for the user on what takes how much.
        Raises OutOfMemory."""
        ...


class HostParts:
    def __init__(self, facts: ModelFacts, resolved: ResolvedConfig, ops: Ops, model: Model) -> None:
        self._facts, self._resolved, self._ops, self._model = facts, resolved, ops, model
        self._batch = Batch(resolved.max_num_seqs, resolved.max_model_len, resolved.block_size)
        self._sampler = Sampler(ops, resolved.max_num_seqs, facts.vocab_size, ops.device)

    def runner(self) -> tuple[Runner, int, list[str]]:
        size = kv.block_bytes(self._facts, self._resolved, self._ops)
        trial = self._over(1)
        workspace = trial.workspace or profile.measure(trial, self._resolved)  # which also warms libraries up
        blocks = host_pages(self._resolved, size, self._model.nbytes, workspace)
        return self._over(blocks), blocks, [f"workspace {workspace / kv.MIB:.0f} MiB"]

    def _over(self, blocks: int) -> Runner:
        resolved, model, ops, batch = self._resolved, self._model, self._ops, self._batch
        pages = kv.allocate(self._facts, resolved, ops, blocks)
        rows = batch.permanent(*self._sampler.settings)
        recorded = ops.record(model, pages, rows, resolved.max_num_batched_tokens, resolved.block_size)
        steps = recorded or EagerSteps(model, ops, pages, batch, self._facts.vocab_size)
        return Runner(model, pages, batch, self._sampler, steps)


class DeviceParts:
    def __init__(self, facts: ModelFacts, resolved: ResolvedConfig, ops: Ops, model: Model, device: Device) -> None:
        self._facts, self._resolved, self._ops, self._model = facts, resolved, ops, model
        self._device = device
        self._batch = Batch(resolved.max_num_seqs, resolved.max_model_len, resolved.block_size)
        self._lane = DeviceLane(device, self._batch)
        self._sampler = Sampler(ops, resolved.max_num_seqs, facts.vocab_size, device.where, self._lane)
        self._state = self._lane.state = make_rows(self._batch, self._sampler.settings[1])
        self._sizes = bucket_sizes(min(resolved.max_num_seqs, resolved.max_num_batched_tokens))

    def runner(self) -> tuple[Runner, int, list[str]]:
        facts, resolved, device = self._facts, self._resolved, self._device
        size = kv.block_bytes(facts, resolved, self._ops)
        pages = kv.allocate(facts, resolved, self._ops, 2)
        activations = profile.measure_on(device, self._over(pages, None), resolved, facts.vocab_size)
        graphs = 0 if resolved.enforce_eager else self._trial(pages)
        del pages
        plan = kv.device_plan(resolved, device.memory(), size, self._model.nbytes, activations, graphs)
        pages = kv.allocate(facts, resolved, self._ops, plan.pages + 1)
        captured, notes = None, plan.notes()
        if not resolved.enforce_eager:
            captured = self._graphs(pages)
            taken = captured.capture(budget=graphs)
            notes.append(
                f"graphs of {len(captured.sizes)} batch sizes up to {captured.sizes[-1]}: {taken / kv.MIB:.0f} MiB of "
                f"the {graphs / kv.MIB:.0f} set aside"
            )
        return self._over(pages, captured), plan.pages, notes

    def _trial(self, pages: Sequence[Tensor]) -> int:
        """Bytes that all graphs will take: of the largest, and for each other what a further one added."""
        largest = self._graphs(pages).capture([self._sizes[-1]])
        others = self._sizes[:-1]
        if not others:
            return largest
        tried = others[:2]
        more = self._graphs(pages).capture([self._sizes[-1], *tried])
        return largest + -(-max(more - largest, 0) * len(others) // len(tried))

    def _graphs(self, pages: Sequence[Tensor]) -> DecodeGraphs:
        return DecodeGraphs(self._computation(pages), self._device, self._sizes, self._facts.hidden_size)

    def _computation(self, pages: Sequence[Tensor]) -> Computation:
        self._state.block_tables[-1] = pages[0].shape[1] - 1  # the last page is the padding's
        resolved = self._resolved
        return Computation(
            self._model, self._ops, pages, self._state, self._sampler.settings[0], resolved.block_size,
            resolved.max_model_len,
        )  # fmt: skip

    def _over(self, pages: Sequence[Tensor], graphs: DecodeGraphs | None) -> Runner:
        parts = self._computation(pages) if graphs is None else graphs.parts
        steps = DeviceSteps(parts, self._lane, self._batch, self._facts.vocab_size, graphs)
        return Runner(self._model, pages, self._batch, self._sampler, steps, self._lane)
