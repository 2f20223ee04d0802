"""KV pages: how many there are, and the memory they live in. Used by worker/parts after the profile run; layers write
the pages through ops, nobody else does.

Invariant: pages are zero until written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from octavo.config.resolve import ResolvedConfig
from octavo.errors import OutOfMemory
from octavo.kernels.memory import zero_pages
from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import ModelFacts
from octavo.worker.device import DeviceMemory

MIB = 1 << 20
CPU_SHARE = 0.25
"""Of what the budget leaves: a CPU's memory is shared with everything else on the machine."""
CPU_DEFAULT_LIMIT = 224 * MIB
HIGH_UTILIZATION = 0.95
"""Raising --gpu-memory-utilization beyond it helps little, and fails other things."""
MUCH = 0.05
"""From this share of a GPU's memory on it is worth telling how to have it back."""


def block_bytes(facts: ModelFacts, resolved: ResolvedConfig, ops: Ops) -> int:
    """Bytes of one page over all layers, K and V."""
    shape, dtype = ops.kv_page(resolved.block_size, facts.num_kv_heads, facts.head_dim)
    return 2 * facts.num_layers * prod(shape) * dtype.itemsize


def num_blocks(resolved: ResolvedConfig, size: int, weights: int, workspace: int) -> int:
    """Pages to allocate on the host, of `size` bytes. `weights`, `workspace`: bytes already taken of the budget. Raises
    OutOfMemory when one sequence of max_model_len does not fit."""
    one_sequence = _one_sequence(resolved)
    left = resolved.memory_budget - weights - workspace
    given = resolved.kv_cache_memory
    if given is None:
        wanted = max(int(min(CPU_SHARE * left, CPU_DEFAULT_LIMIT)) // size, one_sequence)
    else:
        wanted = _given(resolved, size, given // size)
    wanted = min(wanted, one_sequence * resolved.max_num_seqs)
    if wanted * size > left:
        raise OutOfMemory(
            f"{wanted * size / MIB:.0f} MiB of KV pages do not fit: weights take {weights / MIB:.0f} MiB and the "
            f"workspace {workspace / MIB:.0f} MiB of the {resolved.memory_budget / MIB:.0f} MiB budget; lower "
            + ("--max-model-len or --max-num-batched-tokens" if given is None else "--kv-cache-memory")
        )
    return wanted


def _one_sequence(resolved: ResolvedConfig) -> int:
    """Pages of one of max_model_len: the fewest with which every request can end."""
    return -(-resolved.max_model_len // resolved.block_size)


def _given(resolved: ResolvedConfig, size: int, pages: int) -> int:
    """The pages that --kv-cache-memory holds. Raises OutOfMemory."""
    if pages < _one_sequence(resolved):
        raise OutOfMemory(
            f"--kv-cache-memory {(resolved.kv_cache_memory or 0) / MIB:.0f}MiB holds {pages * resolved.block_size} "
            f"tokens, but one sequence of max_model_len {resolved.max_model_len} needs "
            f"{_one_sequence(resolved) * size / MIB:.0f}MiB; raise --kv-cache-memory or lower --max-model-len"
        )
    return pages


@dataclass(frozen=True)
class MemoryPlan:
    """What takes a device's memory, in bytes."""

    total: int
    limit: int
    """Of `total` as much as --gpu-memory-utilization gives."""
    weights: int
    others: int
    """Other processes, CUDA itself, and the small tables that this one keeps there."""
    graphs: int
    activations: int
    """Of the largest step."""
    page: int
    """Bytes of one."""
    pages: int = 0
    """That requests may have. One more is allocated, for the padding of a batch."""

    @property
    def left(self) -> int:
        """For pages, of `limit`."""
        return self.limit - self.weights - self.others - self.graphs - self.activations

    def __str__(self) -> str:
        graphs = f", graphs {self.graphs / MIB:.0f}" if self.graphs else ""
        return (
            f"weights {self.weights / MIB:.0f} MiB, other processes and CUDA {self.others / MIB:.0f}{graphs}, the "
            f"largest step {self.activations / MIB:.0f}"
        )

    def notes(self) -> list[str]:
        """For the log."""
        pages = (self.pages + 1) * self.page
        rest = self.total - self.limit + self.left - pages
        return [f"of {self.total / MIB:.0f} MiB on the GPU: {self}, KV pages {pages / MIB:.0f}; free {rest / MIB:.0f}"]


def device_plan(
    resolved: ResolvedConfig, memory: DeviceMemory, size: int, weights: int, activations: int, graphs: int
) -> MemoryPlan:
    """Pages of `size` bytes to allocate on a device. `memory`: when weights and tables are there, but neither graphs
    nor activations, whose bytes are given as they were measured; so it has counted other processes too. Raises
    OutOfMemory when one sequence of max_model_len does not fit."""
    one_sequence = _one_sequence(resolved)
    others = max(memory.total - memory.free - weights, 0)
    limit = int(resolved.gpu_memory_utilization * memory.total)
    plan = MemoryPlan(memory.total, limit, weights, others, graphs, activations, size)
    if resolved.kv_cache_memory is not None:
        pages = _given(resolved, size, resolved.kv_cache_memory // size - 1)
        pages = min(pages, one_sequence * resolved.max_num_seqs)
        room = memory.free - graphs - activations
        if (pages + 1) * size > room:
            raise OutOfMemory(
                f"{(pages + 1) * size / MIB:.0f} MiB of KV pages do not fit the GPU's {memory.total / MIB:.0f} MiB: "
                f"{plan}; lower --kv-cache-memory" + (f" to {room // MIB}MiB" if room >= MIB else "")
            )
    else:
        pages = min(plan.left // size - 1, one_sequence * resolved.max_num_seqs)
        if pages < one_sequence:
            raise OutOfMemory(_no_room(resolved, plan, pages))
    return replace(plan, pages=pages)


def _no_room(resolved: ResolvedConfig, plan: MemoryPlan, pages: int) -> str:
    """`pages`: what there is room for, if any, too little for one sequence."""
    length, share = pages * resolved.block_size, resolved.gpu_memory_utilization
    advice = [f"lower --max-model-len to {length}"] if length > 0 else ["take a smaller or a quantized model"]
    if share < HIGH_UTILIZATION:
        advice.append("raise --gpu-memory-utilization")
    if plan.activations > MUCH * plan.limit:
        advice.append("lower --max-num-batched-tokens")
    if plan.graphs > MUCH * plan.limit:
        advice.append("lower --max-num-seqs or give --enforce-eager")
    if plan.others > MUCH * plan.limit:
        advice.append("end other processes on the GPU")
    needed = (_one_sequence(resolved) + 1) * plan.page
    return (
        f"KV pages of one sequence of max_model_len {resolved.max_model_len} take {needed / MIB:.0f} MiB, and "
        f"{max(plan.left, 0) / MIB:.0f} are left of the GPU's {plan.total / MIB:.0f} MiB at --gpu-memory-utilization "
        f"{share:g}: {plan}; {', '.join(advice[:-1]) + ', or ' if len(advice) > 1 else ''}{advice[-1]}"
    )


def allocate(facts: ModelFacts, resolved: ResolvedConfig, ops: Ops, blocks: int) -> list[Tensor]:
    """Per layer [2, blocks, ...], pages as the kernels want them, all in one piece of memory: on the host an anonymous
    mapping."""
    page, dtype = ops.kv_page(resolved.block_size, facts.num_kv_heads, facts.head_dim)
    nbytes = blocks * block_bytes(facts, resolved, ops)
    if ops.device.type == "cpu":
        memory = zero_pages(nbytes)
    else:
        memory = torch.zeros(nbytes, dtype=torch.uint8, device=ops.device)
    return list(memory.view(dtype).view(facts.num_layers, 2, blocks, *page).unbind(0))
