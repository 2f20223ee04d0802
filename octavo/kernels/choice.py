"""A list of ways to do one thing, what each supports, and the first that does: with reasons. Used by registry.py (all
operations) and attention.py (attention on a GPU)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from octavo.rank import Rank

T = TypeVar("T")


@dataclass(frozen=True)
class Spec:
    """What is asked of a backend. `device` as in ResolvedConfig ("cpu", "cuda:0"), `dtype` a key of DTYPES."""

    device: str
    """Of `rank`, where that is given."""
    dtype: str
    kv_cache_dtype: str | None = None
    """A key of DTYPES, int8 or fp8; None: dtype."""
    threads: int = 1
    isa: str | None = None
    """Instruction set that is forced (OCTAVO_CPU_ISA); None: the best."""
    attention: str = "auto"
    """--attention-backend."""
    head_dim: int | None = None
    """The model's; None: not known, any is taken to be supported."""
    rank: Rank | None = None
    """Among those that share the model; None: alone."""


@dataclass(frozen=True)
class Backend(Generic[T]):
    name: str
    describe: Callable[[Spec], str]
    supports: Callable[[Spec], str | None]
    """None, or the reason why not."""
    load: Callable[[Spec], T]


@dataclass(frozen=True)
class Choice:
    """What `octavo doctor` prints about one backend."""

    name: str
    chosen: bool
    reason: str


def report(backends: Sequence[Backend[T]], spec: Spec, forced: str | None, option: str) -> list[Choice]:
    """One entry per backend, in order of preference; at most one is chosen. `option` is what forces one."""
    choices, taken = [], False
    for backend in backends:
        reason = backend.supports(spec)
        if reason is None and forced is not None and backend.name != forced:
            reason = f"{option}{forced}"
        elif reason is None and taken:
            reason = "a faster one was chosen"
        chosen = reason is None
        taken = taken or chosen
        choices.append(Choice(backend.name, chosen, reason or backend.describe(spec)))
    return choices


def not_the_better(choices: Sequence[Choice], what: str) -> list[str]:
    """Notes on what stands before the chosen one in the list."""
    chosen = next(i for i, choice in enumerate(choices) if choice.chosen)
    return [f"not the {choice.name} {what}: {choice.reason}" for choice in choices[:chosen]]
