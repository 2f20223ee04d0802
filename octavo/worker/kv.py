"""KV pages: how many there are, and the memory they live in. Used by worker/parts after the profile run; layers write
the pages through ops, nobody else does.

Invariant: pages are zero until written.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from octavo.config.memory import MemoryPlan, MemoryUse, plan_pages
from octavo.config.resolve import ResolvedConfig
from octavo.errors import ModelFileError
from octavo.kernels.memory import zero_pages
from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import DeltaFacts, ModelFacts
from octavo.worker.device import DeviceMemory

MIB = 1 << 20


def block_bytes(facts: ModelFacts, resolved: ResolvedConfig, ops: Ops) -> int:
    """Bytes of one page over all layers, K and V."""
    if any(isinstance(layer.mixer, DeltaFacts) for layer in facts.layers):
        raise ModelFileError(facts.architecture, "layers that keep a state are not served yet; take another model")
    shape, dtype = ops.kv_page(resolved.block_size, facts.attention.num_kv_heads, facts.attention.head_dim)
    return 2 * facts.num_layers * prod(shape) * dtype.itemsize


def device_plan(
    resolved: ResolvedConfig, memory: DeviceMemory, size: int, weights: int, activations: int, graphs: int
) -> MemoryPlan:
    """Pages of `size` bytes to allocate on a device. `memory`: when weights and tables are there, but neither graphs
    nor activations, whose bytes are given as they were measured; so it has counted other processes too. Raises
    OutOfMemory when one sequence of max_model_len does not fit."""
    return plan_pages(resolved, MemoryUse(memory.total, memory.free, weights, activations, graphs, size))


def allocate(facts: ModelFacts, resolved: ResolvedConfig, ops: Ops, blocks: int) -> list[Tensor]:
    """Per layer [2, blocks, ...], pages as the kernels want them, all in one piece of memory: on the host an anonymous
    mapping."""
    page, dtype = ops.kv_page(resolved.block_size, facts.attention.num_kv_heads, facts.attention.head_dim)
    nbytes = blocks * block_bytes(facts, resolved, ops)
    if ops.device.type == "cpu":
        memory = zero_pages(nbytes)
    else:
        memory = torch.zeros(nbytes, dtype=torch.uint8, device=ops.device)
    return list(memory.view(dtype).view(facts.num_layers, 2, blocks, *page).unbind(0))
