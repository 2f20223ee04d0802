"""Who computes: the list of backends, what each supports, and the choice of one, with reasons. Called by the worker
at load and by `octavo doctor`.

Adding a backend: its folder, one entry in BACKENDS, in order of preference. Backends are imported when chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.errors import ConfigError
from octavo.kernels.layouts import DTYPES
from octavo.kernels.ops import Ops


@dataclass(frozen=True)
class Spec:
    """What is asked of a backend. `device` as in ResolvedConfig ("cpu", "cuda:0"), `dtype` a key of DTYPES."""

    device: str
    dtype: str


@dataclass(frozen=True)
class Backend:
    name: str
    describe: str
    supports: Callable[[Spec], str | None]
    """None, or the reason why not."""
    load: Callable[[Spec], Ops]


@dataclass(frozen=True)
class Choice:
    """What `octavo doctor` prints about one backend."""

    name: str
    chosen: bool
    reason: str


def _reference_supports(spec: Spec) -> str | None:
    if spec.device != "cpu":
        return f"runs on the CPU, not on {spec.device}"
    if spec.dtype == "float16":
        return "float16 is slow and overflows on the CPU; use bfloat16 or float32"
    return None if spec.dtype in DTYPES else f"does not know dtype {spec.dtype}"


def _load_reference(spec: Spec) -> Ops:
    from octavo.kernels.reference.backend import ReferenceOps

    return ReferenceOps(DTYPES[spec.dtype], spec.device)


BACKENDS = [
    Backend("reference", "plain PyTorch", _reference_supports, _load_reference),
]


def report(device: str, dtype: str, forced: str | None = None) -> list[Choice]:
    """One entry per backend, in order of preference; at most one is chosen."""
    spec, choices, taken = Spec(device, dtype), [], False
    for backend in BACKENDS:
        reason = backend.supports(spec)
        if reason is None and forced is not None and backend.name != forced:
            reason = f"OCTAVO_BACKEND={forced}"
        elif reason is None and taken:
            reason = "a faster one was chosen"
        chosen = reason is None
        taken = taken or chosen
        choices.append(Choice(backend.name, chosen, reason or backend.describe))
    return choices


def choose(device: str, dtype: str, forced: str | None = None) -> Ops:
    """The first backend that supports the device and dtype, or the forced one. Raises ConfigError with all reasons."""
    known = [backend.name for backend in BACKENDS]
    if forced is not None and forced not in known:
        raise ConfigError(f"OCTAVO_BACKEND={forced}: no such backend; there are {', '.join(known)}")
    choices = report(device, dtype, forced)
    for backend, choice in zip(BACKENDS, choices, strict=True):
        if choice.chosen:
            return backend.load(Spec(device, dtype))
    reasons = "; ".join(f"{choice.name}: {choice.reason}" for choice in choices)
    raise ConfigError(f"no kernels for device {device} with dtype {dtype} ({reasons})")
