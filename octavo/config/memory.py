"""Where a GPU's memory goes: the plan of it, which the worker makes of what it has measured (worker/kv.py) and `octavo
doctor` of estimates, before anything loads. Pure.

Invariant: what the plan gives to pages is never more than is left of --gpu-memory-utilization of the GPU by everything
else that is there, other processes included.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo.cachespec import Paged, Recurrent, most_blocks, paged_groups
from octavo.config.resolve import ResolvedConfig
from octavo.errors import OutOfMemory
from octavo.modelfiles.facts import AttentionFacts, DeltaFacts, ExpertsFacts, MLPFacts, ModelFacts

MIB = 1 << 20
HIGH_UTILIZATION = 0.95
"""Raising --gpu-memory-utilization beyond it helps little, and fails other things."""
MUCH = 0.05
"""From this share of the memory on it is worth telling how to have it back."""

OWN_BYTES = 2048 * MIB
"""CUDA and our tables alone take no more, so beyond it there is another process."""

CPU_SHARE = 0.25
"""Of what the budget leaves: a CPU's memory is shared with everything else on the machine."""
CPU_DEFAULT_LIMIT = 224 * MIB


@dataclass(frozen=True)
class GroupSize:
    """A paged cache group."""

    block_bytes: int
    """Of one block in all of its layers, K and V."""
    window: int | None = None


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a GPU's memory: `free` when the weights are there and neither graphs nor activations."""

    total: int
    free: int
    weights: int
    activations: int
    """Of the largest step."""
    graphs: int
    groups: tuple[GroupSize, ...]
    states: int = 0
    """Of recurrent layers, and checkpoints of them."""

    @property
    def padding(self) -> int:
        """The block of each group that the padding of a batch has."""
        return sum(group.block_bytes for group in self.groups)

    @property
    def others(self) -> int:
        """Other processes, CUDA itself, and the small tables that this process keeps there."""
        return max(self.total - self.free - self.weights - self.states, 0)

    def __str__(self) -> str:
        graphs = f", graphs {self.graphs / MIB:.0f}" if self.graphs else ""
        states = f", states {self.states / MIB:.0f}" if self.states else ""
        return (
            f"weights {self.weights / MIB:.0f} MiB{states}, other processes and CUDA {self.others / MIB:.0f}{graphs}, "
            f"the largest step {self.activations / MIB:.0f}"
        )


@dataclass(frozen=True)
class MemoryPlan:
    use: MemoryUse
    blocks: tuple[int, ...]
    """Of each group that requests may have. One more is allocated, for the padding of a batch."""

    @property
    def kv_bytes(self) -> int:
        return total_bytes(self.use.groups, self.blocks) + self.use.padding

    def notes(self) -> list[str]:
        """For the log."""
        use = self.use
        rest = use.total - use.others - use.weights - use.states - use.graphs - use.activations - self.kv_bytes
        return [
            f"of {use.total / MIB:.0f} MiB on the GPU: {use}, KV pages {self.kv_bytes / MIB:.0f}; {rest / MIB:.0f} are "
            "left free"
        ]


def group_sizes(resolved: ResolvedConfig, facts: ModelFacts) -> tuple[GroupSize, ...]:
    """Of the model's paged groups. int8 has a scale for each head and position."""
    element = {"int8": 1, "fp8": 1, "float32": 4}.get(resolved.kv_cache_dtype, 2)
    scales = 8 if resolved.kv_cache_dtype == "int8" else 0
    return tuple(
        GroupSize(
            (spec.width * element + spec.kv_heads * scales) * resolved.block_size * len(group.layers), spec.window
        )
        for group in paged_groups(facts.cache_specs)
        if isinstance(spec := group.spec, Paged)
    )


def _state_of_one(facts: ModelFacts) -> int:
    """Bytes that the recurrent layers keep of a sequence."""
    return sum(spec.num_bytes for spec in facts.cache_specs if isinstance(spec, Recurrent))


CHECKPOINT_SHARE = 1 / 16
"""Of the budget, for checkpoints of states; on a CPU at most CPU_DEFAULT_LIMIT."""
CHECKPOINTS_PER_ROW = 4
"""At most."""


def num_checkpoints(resolved: ResolvedConfig, facts: ModelFacts) -> int:
    """That states are saved in; 0 where nothing is, else at least one for each of two sequences."""
    one = _state_of_one(facts)
    if not one or not resolved.options.prefix_cache:
        return 0
    room = int(CHECKPOINT_SHARE * resolved.memory_budget)
    if resolved.device == "cpu":
        room = min(room, CPU_DEFAULT_LIMIT)
    return max(2, min(room // one, CHECKPOINTS_PER_ROW * resolved.max_num_seqs))


def state_bytes(resolved: ResolvedConfig, facts: ModelFacts) -> int:
    """Of the states of recurrent layers: for every row, for the padding of a batch, and in checkpoints."""
    return (resolved.max_num_seqs + 1 + num_checkpoints(resolved, facts)) * _state_of_one(facts)


def kv_bytes_per_token(resolved: ResolvedConfig, facts: ModelFacts) -> int:
    """Of a token that no window has left behind."""
    return sum(group.block_bytes for group in group_sizes(resolved, facts)) // resolved.block_size


def total_bytes(sizes: Sequence[GroupSize], blocks: Sequence[int]) -> int:
    return sum(count * group.block_bytes for group, count in zip(sizes, blocks, strict=True))


def blocks_of(resolved: ResolvedConfig, group: GroupSize, num_tokens: int) -> int:
    """That a sequence of so many tokens has at most."""
    return most_blocks(num_tokens, group.window, resolved.block_size, resolved.max_num_batched_tokens)


def sequence_bytes(resolved: ResolvedConfig, sizes: Sequence[GroupSize], num_tokens: int) -> int:
    return total_bytes(sizes, [blocks_of(resolved, group, num_tokens) for group in sizes])


def longest_sequence(resolved: ResolvedConfig, sizes: Sequence[GroupSize], nbytes: int) -> int:
    """Tokens, in whole blocks, of the longest one that so many bytes hold."""
    size = resolved.block_size
    return size * _last(
        -(-resolved.max_model_len // size), lambda n: sequence_bytes(resolved, sizes, n * size) <= nbytes
    )


def share_out(resolved: ResolvedConfig, sizes: Sequence[GroupSize], nbytes: int) -> tuple[int, ...]:
    """Blocks of each group, for at least one sequence of max_model_len, which has to fit: as many as give all the
    sequences that run at once the same length, the longest there is room for; what is left over goes to the first group
    that has use for it."""
    rows, size = resolved.max_num_seqs, resolved.block_size
    least, most = ([count * blocks_of(resolved, g, resolved.max_model_len) for g in sizes] for count in (1, rows))

    def blocks(n: int) -> list[int]:
        return [max(one, rows * blocks_of(resolved, g, n * size)) for one, g in zip(least, sizes, strict=True)]

    found = blocks(_last(-(-resolved.max_model_len // size), lambda n: total_bytes(sizes, blocks(n)) <= nbytes))
    for i, group in enumerate(sizes):
        left = nbytes - total_bytes(sizes, found)
        found[i] = max(found[i], min(found[i] + left // group.block_bytes, most[i]))
    return tuple(found)


def _last(most: int, holds: Callable[[int], bool]) -> int:
    """The largest of 0..most for which it holds, where it holds for all below; 0 where it holds for none."""
    return bisect_left(range(1, most + 1), True, key=lambda n: not holds(n))


def check_given(resolved: ResolvedConfig, sizes: Sequence[GroupSize], nbytes: int) -> None:
    """Whether --kv-cache-memory holds one sequence of max_model_len, with `nbytes` of it for requests. Raises
    OutOfMemory."""
    needed = sequence_bytes(resolved, sizes, resolved.max_model_len)
    if nbytes < needed:
        raise OutOfMemory(
            f"--kv-cache-memory {(resolved.kv_cache_memory or 0) / MIB:.0f}MiB holds "
            f"{longest_sequence(resolved, sizes, nbytes)} tokens, but one sequence of max_model_len "
            f"{resolved.max_model_len} needs {needed / MIB:.0f}MiB; raise --kv-cache-memory or lower --max-model-len"
        )


def host_blocks(resolved: ResolvedConfig, sizes: Sequence[GroupSize], weights: int, workspace: int) -> tuple[int, ...]:
    """Blocks of each group to allocate on the host. `weights`, `workspace`: bytes already taken of the budget. Raises
    OutOfMemory when one sequence of max_model_len does not fit."""
    left = resolved.memory_budget - weights - workspace
    given = resolved.kv_cache_memory
    if given is None:
        needed = sequence_bytes(resolved, sizes, resolved.max_model_len)
        blocks = share_out(resolved, sizes, max(int(min(CPU_SHARE * left, CPU_DEFAULT_LIMIT)), needed))
    else:
        check_given(resolved, sizes, given)
        blocks = share_out(resolved, sizes, given)
    wanted = total_bytes(sizes, blocks)
    if wanted > left:
        raise OutOfMemory(
            f"{wanted / MIB:.0f} MiB of KV pages do not fit: weights take {weights / MIB:.0f} MiB and the "
            f"workspace {workspace / MIB:.0f} MiB of the {resolved.memory_budget / MIB:.0f} MiB budget; lower "
            + ("--max-model-len or --max-num-batched-tokens" if given is None else "--kv-cache-memory")
            + (", or give --dtype bfloat16" if resolved.dtype == "float32" else "")
        )
    return blocks


def plan_blocks(resolved: ResolvedConfig, use: MemoryUse) -> MemoryPlan:
    """As many as there is memory for and requests can have; --kv-cache-memory wins. Raises OutOfMemory, in one line,
    when one sequence of max_model_len does not fit."""
    sizes = use.groups
    needed = use.others + use.weights + use.states + use.activations + use.graphs
    if resolved.kv_cache_memory is not None:
        given = resolved.kv_cache_memory - use.padding
        check_given(resolved, sizes, given)
        plan = MemoryPlan(use, share_out(resolved, sizes, given))
        room = use.total - needed
        if plan.kv_bytes > room:
            raise OutOfMemory(
                f"{plan.kv_bytes / MIB:.0f} MiB of KV pages do not fit the GPU's {use.total / MIB:.0f} MiB: {use}; "
                "lower --kv-cache-memory" + (f" to {room // MIB}MiB" if room >= MIB else "")
            )
        return plan
    left = int(resolved.gpu_memory_utilization * use.total) - needed
    if left - use.padding < sequence_bytes(resolved, sizes, resolved.max_model_len):
        raise OutOfMemory(_no_room(resolved, use, max(left, 0)))
    return MemoryPlan(use, share_out(resolved, sizes, left - use.padding))


def _no_room(resolved: ResolvedConfig, use: MemoryUse, left: int) -> str:
    """`left`: the bytes there is room for, too few for one sequence."""
    share = resolved.gpu_memory_utilization
    limit = share * use.total
    shortest = longest_sequence(resolved, use.groups, left - use.padding)
    advice = []
    if shortest > 0:
        advice.append(f"lower --max-model-len to {shortest}")
    elif use.weights > MUCH * limit:
        advice.append("take a smaller or a quantized model")
    if share < HIGH_UTILIZATION:
        advice.append("raise --gpu-memory-utilization")
    if use.activations > MUCH * limit:
        advice.append("lower --max-num-batched-tokens")
    if use.graphs > MUCH * limit:
        advice.append("give --enforce-eager")
    if use.others > max(MUCH * limit, OWN_BYTES):
        advice.append("end other processes on the GPU")
    last = advice.pop() if advice else "take a smaller model"
    needed = sequence_bytes(resolved, use.groups, resolved.max_model_len) + use.padding
    return (
        f"KV pages for one sequence of max_model_len {resolved.max_model_len} take {needed / MIB:.0f} MiB, and "
        f"{left / MIB:.0f} are left of the GPU's {use.total / MIB:.0f} MiB with --gpu-memory-utilization {share:g}: "
        f"{use}; " + (f"{', '.join(advice)}, or {last}" if advice else last)
    )


CUDA_BYTES = 512 * MIB
"""A guess: what CUDA and compiled kernels take of a GPU for a process."""
LIBRARY_BYTES = 64 * MIB
"""A guess: workspaces of matrix products."""
LOGITS_BYTES = 128 * MIB
"""Most of them held at once by a step that is no graph."""
LOGITS_COPIES = 4
"""Themselves, as they were for log-probabilities, the logarithms of those, and what the sampler makes of them."""
GRAPH_EVERY = 8
"""Rows: about so far apart are the sizes of batches that get a pair of graphs."""
KERNELS_PER_LAYER = 12
KERNEL_BYTES = 16 << 10
"""A guess: what the driver keeps for each kernel of a graph."""


@dataclass(frozen=True)
class Estimate:
    """Bytes, before anything was measured: by the shapes of the largest tensors, and guesses for what is not ours."""

    activations: int
    graphs: int
    tables: int
    """And CUDA itself."""


def widest_of(attention: AttentionFacts | DeltaFacts) -> int:
    """Numbers a token takes at its widest place: q, k, v, the rotated q and the result; of a delta net what is
    projected, convolved and found."""
    if isinstance(attention, DeltaFacts):
        return 2 * attention.channels + 3 * attention.values
    return (3 * attention.num_heads + 2 * attention.num_kv_heads) * attention.head_dim


def widest_mlp(mlp: MLPFacts | ExpertsFacts, hidden_size: int) -> int:
    """The same of an MLP: gate, up and their product; of a mixture those of all chosen experts, and their results."""
    if isinstance(mlp, MLPFacts):
        return 3 * mlp.inner_size
    return mlp.chosen * (3 * mlp.inner_size + hidden_size) + 3 * mlp.shared_size


def estimate(facts: ModelFacts, resolved: ResolvedConfig) -> Estimate:
    """For a model of attention and a gated MLP on a GPU. At the widest place of a block there are: the residual in f32,
    twice where one is added; the block's input; and of the MLP gate, up and their product, or of attention q, k, v, the
    rotated q and the result."""
    element = 4 if resolved.dtype == "float32" else 2
    inner = max(max(widest_mlp(layer.mlp, facts.hidden_size), widest_of(layer.mixer)) for layer in facts.layers)
    per_token = 2 * 4 * facts.hidden_size + element * (facts.hidden_size + inner)
    tokens = resolved.max_num_batched_tokens
    rows = min(resolved.max_num_seqs, tokens)
    logits = 4 * facts.vocab_size * rows
    activations = tokens * per_token + LOGITS_COPIES * min(logits, LOGITS_BYTES) + LIBRARY_BYTES
    graphs = 0
    if not resolved.enforce_eager:
        num_graphs = 2 * (3 + -(-rows // GRAPH_EVERY))
        kernels = num_graphs * facts.num_layers * KERNELS_PER_LAYER // 2  # layers are in every other one
        graphs = rows * per_token + 2 * logits + kernels * KERNEL_BYTES
    counts_and_sets = 6 * facts.vocab_size * resolved.max_num_seqs  # of penalties and allowed tokens
    return Estimate(activations, graphs, CUDA_BYTES + counts_and_sets)
