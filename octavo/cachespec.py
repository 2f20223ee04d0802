"""What the layers of a model keep of a sequence, and which of them keep it together. Plain numbers, for both islands.

Layers with equal specs form a group: one pool of blocks, one block table a row. Paged groups come first, because they
have block tables and recurrent ones do not; within a kind, groups stand in the order in which layers name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Paged:
    """Keys and values of every position, or of the last `window` ones (None: all), in blocks."""

    kv_heads: int
    k_dim: int
    v_dim: int
    window: int | None = None

    @property
    def width(self) -> int:
        """Numbers a position keeps."""
        return self.kv_heads * (self.k_dim + self.v_dim)


@dataclass(frozen=True)
class Latent:
    """One compressed vector a position, from which all heads' keys and values follow, and a rotated part beside it."""

    dim: int
    rope_dim: int


@dataclass(frozen=True)
class Recurrent:
    """States of fixed size, each the shape of an f32 array."""

    states: tuple[tuple[int, ...], ...]

    @property
    def num_bytes(self) -> int:
        """Of one sequence in one layer."""
        return 4 * sum(prod(shape) for shape in self.states)


@dataclass(frozen=True)
class SharedWith:
    """The cache of an earlier layer, which this one reads."""

    layer: int


@dataclass(frozen=True)
class Nothing:
    """The layer looks at each token alone."""


CacheSpec = Paged | Latent | Recurrent | SharedWith | Nothing


@dataclass(frozen=True)
class Group:
    """`layers`, ascending, keep the same."""

    spec: Paged | Latent | Recurrent
    layers: tuple[int, ...]

    @property
    def is_recurrent(self) -> bool:
        return isinstance(self.spec, Recurrent)

    @property
    def window(self) -> int | None:
        return self.spec.window if isinstance(self.spec, Paged) else None


def groups(specs: Sequence[CacheSpec]) -> tuple[Group, ...]:
    """`specs`: of each layer."""
    found: dict[Paged | Latent | Recurrent, list[int]] = {}
    for layer, spec in enumerate(specs):
        if not isinstance(spec, (SharedWith, Nothing)):
            found.setdefault(spec, []).append(layer)
    made = [Group(spec, tuple(layers)) for spec, layers in found.items()]
    return tuple(sorted(made, key=lambda group: group.is_recurrent))


def paged_groups(specs: Sequence[CacheSpec]) -> tuple[Group, ...]:
    """Those that have pools of blocks and block tables."""
    return tuple(group for group in groups(specs) if not group.is_recurrent)


def first_needed(position: int, window: int | None, block_size: int) -> int:
    """The first block that the token at `position` or a later one looks at."""
    return 0 if window is None else max(position - window + 1, 0) // block_size


def most_blocks(num_tokens: int, window: int | None, block_size: int, at_once: int) -> int:
    """Blocks that a sequence of so many tokens holds at a time at most, when a step computes `at_once` of them."""
    whole = -(-num_tokens // block_size)
    return whole if window is None else min(whole, -(-(window - 1 + at_once) // block_size) + 1)
