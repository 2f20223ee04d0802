"""What the layers of a model keep: the memory that cache groups live in. Layers write it through ops, nobody else does.

Invariant: blocks are zero until written.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from octavo.cachespec import Group, Paged, Recurrent, SharedWith, paged_groups
from octavo.config.memory import GroupSize
from octavo.config.resolve import ResolvedConfig
from octavo.errors import ModelFileError
from octavo.kernels.memory import zero_pages
from octavo.kernels.ops import Ops
from octavo.kernels.step import LayerCache, PagedCache, RecurrentCache
from octavo.modelfiles.facts import ModelFacts

MIB = 1 << 20


def _page(facts: ModelFacts, group: Group, resolved: ResolvedConfig, ops: Ops) -> tuple[tuple[int, ...], torch.dtype]:
    spec = group.spec
    if not isinstance(spec, Paged) or spec.k_dim != spec.v_dim:
        raise ModelFileError(facts.architecture, f"layers that keep {spec} are not served yet; take another model")
    return ops.kv_page(resolved.block_size, spec.kv_heads, spec.k_dim)


def sizes(facts: ModelFacts, resolved: ResolvedConfig, ops: Ops) -> tuple[GroupSize, ...]:
    """Of the paged groups, as this backend lays their blocks out. Raises ModelFileError for what is not served."""
    found, kept = [], paged_groups(facts.cache_specs)
    if not kept:
        raise ModelFileError(facts.architecture, "no layer keeps keys and values: not served yet; take another model")
    for group in kept:
        shape, dtype = _page(facts, group, resolved, ops)
        found.append(GroupSize(2 * len(group.layers) * prod(shape) * dtype.itemsize, group.window))
    return tuple(found)


States = dict[int, RecurrentCache]
"""By layer."""


def states(facts: ModelFacts, resolved: ResolvedConfig, ops: Ops) -> States:
    """Those of layers that keep some: for every row, and for the padding of a batch."""
    rows = resolved.max_num_seqs + 1
    return {
        layer: RecurrentCache(tuple(torch.zeros(rows, *shape, device=ops.device) for shape in spec.states))
        for layer, spec in enumerate(facts.cache_specs)
        if isinstance(spec, Recurrent)
    }


class Checkpoints:
    """Copies of what rows keep in `states`. On the host memory is taken when one is first used."""

    def __init__(self, states: States, count: int, device: torch.device) -> None:
        self._pairs = [
            (state, _zeros(count * state[0].nbytes, device).view(state.dtype).view(count, *state.shape[1:]))
            for cache in states.values()
            for state in cache.states
        ]

    def save(self, rows: Sequence[int], places: Sequence[int]) -> None:
        """States of `rows` → checkpoints at `places`."""
        for state, saved in self._pairs:
            _copy_rows(state, rows, saved, places)

    def load(self, places: Sequence[int], rows: Sequence[int]) -> None:
        """Checkpoints at `places` → states of `rows`."""
        for state, saved in self._pairs:
            _copy_rows(saved, places, state, rows)


def _copy_rows(source: Tensor, at: Sequence[int], target: Tensor, to: Sequence[int]) -> None:
    for i, j in zip(at, to, strict=True):
        target[j].copy_(source[i], non_blocking=True)


def allocate(
    facts: ModelFacts, resolved: ResolvedConfig, ops: Ops, blocks: Sequence[int], states: States | None = None
) -> list[LayerCache]:
    """What each layer keeps. `blocks`: of each paged group, whose memory is one piece: on the host an anonymous
    mapping. `states`: of layers that keep some."""
    specs = facts.cache_specs
    found: list[LayerCache] = [(states or {}).get(layer) for layer in range(len(specs))]
    for index, (group, count) in enumerate(zip(paged_groups(specs), blocks, strict=True)):
        page, dtype = _page(facts, group, resolved, ops)
        shape = (len(group.layers), 2, count, *page)
        memory = _zeros(prod(shape) * dtype.itemsize, ops.device).view(dtype).view(shape)
        for layer, of_layer in zip(group.layers, memory, strict=True):
            found[layer] = PagedCache(index, of_layer)
    for layer, spec in enumerate(specs):
        if isinstance(spec, SharedWith):
            found[layer] = found[spec.layer]
    return found


def _zeros(nbytes: int, device: torch.device) -> Tensor:
    return zero_pages(nbytes) if device.type == "cpu" else torch.zeros(nbytes, dtype=torch.uint8, device=device)
