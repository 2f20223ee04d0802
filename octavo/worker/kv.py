"""KV pages: how many there are, and the memory they live in. Made by worker/worker after the profile run; layers write
them through ops, nobody else does.

Invariant: pages are zero until written.
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from octavo.config.resolve import ResolvedConfig
from octavo.errors import OutOfMemory
from octavo.kernels.memory import zero_pages
from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import ModelFacts

MIB = 1 << 20
CPU_SHARE = 0.25
"""Of what the budget leaves: a CPU's memory is shared with everything else on the machine."""
CPU_DEFAULT_LIMIT = 224 * MIB


def block_bytes(facts: ModelFacts, resolved: ResolvedConfig, ops: Ops) -> int:
    """Bytes of one page over all layers, K and V."""
    shape, dtype = ops.kv_page(resolved.block_size, facts.num_kv_heads, facts.head_dim)
    return 2 * facts.num_layers * prod(shape) * dtype.itemsize


def num_blocks(resolved: ResolvedConfig, size: int, weights: int, workspace: int) -> int:
    """Pages to allocate, of `size` bytes. `weights`, `workspace`: bytes already taken of the budget. Raises OutOfMemory
    when one sequence of max_model_len does not fit."""
    one_sequence = -(-resolved.max_model_len // resolved.block_size)
    most = one_sequence * resolved.max_num_seqs
    left = resolved.memory_budget - weights - workspace
    given = resolved.kv_cache_memory
    if given is None:
        wanted = max(int(min(CPU_SHARE * left, CPU_DEFAULT_LIMIT)) // size, one_sequence)
    else:
        wanted = given // size
        if wanted < one_sequence:
            raise OutOfMemory(
                f"--kv-cache-memory {given / MIB:.0f}MiB holds {wanted * resolved.block_size} tokens, but one sequence "
                f"of max_model_len {resolved.max_model_len} needs {one_sequence * size / MIB:.0f}MiB; raise "
                f"--kv-cache-memory or lower --max-model-len"
            )
    wanted = min(wanted, most)
    if wanted * size > left:
        raise OutOfMemory(
            f"{wanted * size / MIB:.0f} MiB of KV pages do not fit: weights take {weights / MIB:.0f} MiB and the "
            f"workspace {workspace / MIB:.0f} MiB of the {resolved.memory_budget / MIB:.0f} MiB budget; lower "
            + ("--max-model-len or --max-num-batched-tokens" if given is None else "--kv-cache-memory")
        )
    return wanted


def allocate(facts: ModelFacts, resolved: ResolvedConfig, ops: Ops, blocks: int) -> list[Tensor]:
    """Per layer [2, blocks, ...], pages as the kernels want them, all in one anonymous mapping."""
    page, dtype = ops.kv_page(resolved.block_size, facts.num_kv_heads, facts.head_dim)
    memory = zero_pages(blocks * block_bytes(facts, resolved, ops)).view(dtype)
    return list(memory.view(facts.num_layers, 2, blocks, *page).unbind(0))
