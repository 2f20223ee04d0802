"""Who computes: the list of backends, what each supports, and the choice of one, with reasons. Called by the worker
at load and by `octavo doctor`.

Adding a backend: its folder, one entry in BACKENDS, in order of preference. Backends are imported when chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from octavo.errors import ConfigError
from octavo.kernels.layouts import DTYPES
from octavo.kernels.ops import Ops


@dataclass(frozen=True)
class Spec:
    """What is asked of a backend. `device` as in ResolvedConfig ("cpu", "cuda:0"), `dtype` a key of DTYPES."""

    device: str
    dtype: str
    kv_cache_dtype: str | None = None
    """A key of DTYPES, or int8; None: dtype."""
    threads: int = 1
    isa: str | None = None
    """Instruction set that is forced (OCTAVO_CPU_ISA); None: the best."""


@dataclass(frozen=True)
class Backend:
    name: str
    describe: Callable[[Spec], str]
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
    if spec.kv_cache_dtype not in (None, spec.dtype):
        return f"has no KV cache of {spec.kv_cache_dtype} beside {spec.dtype}"
    return None if spec.dtype in DTYPES else f"does not know dtype {spec.dtype}"


def _load_reference(spec: Spec) -> Ops:
    from octavo.kernels.reference.backend import ReferenceOps

    return ReferenceOps(DTYPES[spec.dtype], spec.device, spec.threads)


def _native_supports(spec: Spec) -> str | None:
    if spec.device != "cpu":
        return f"runs on the CPU, not on {spec.device}"
    if find_spec("octavo.kernels.cpu._native") is None:
        return "the native kernels were not built at installation; they need a C++ compiler and Python's headers"
    from octavo.kernels.cpu import backend

    return backend.supports(spec.dtype, spec.kv_cache_dtype or spec.dtype)


def _describe_native(spec: Spec) -> str:
    from octavo.kernels.cpu.backend import PRODUCTS, choose_isa, known_isas

    isa = choose_isa(spec.isa)
    others = [name for name in known_isas() if name != isa]
    also = f"; this machine also runs {', '.join(others)}" if others else ""
    return f"native kernels for {isa} ({PRODUCTS[isa]}){also}"


def _load_native(spec: Spec) -> Ops:
    from octavo.kernels.cpu.backend import CpuOps, choose_isa

    isa = choose_isa(spec.isa)
    return CpuOps(DTYPES[spec.dtype], spec.kv_cache_dtype or spec.dtype, isa, spec.threads)


def _triton_supports(spec: Spec) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    from octavo.kernels.triton.launch import INTERPRETED

    if not spec.device.startswith("cuda"):
        return None if INTERPRETED and spec.device == "cpu" else f"runs on an NVIDIA GPU, not on {spec.device}"
    import torch

    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU with a driver it can use"
    from octavo.kernels.triton.backend import KV_TYPES

    kv = spec.kv_cache_dtype or spec.dtype
    return None if kv in KV_TYPES else f"has no KV cache of {kv}; there are {', '.join(KV_TYPES)}"


def _load_triton(spec: Spec) -> Ops:
    from octavo.kernels.triton.backend import KV_TYPES, TritonOps

    return TritonOps(DTYPES[spec.dtype], KV_TYPES[spec.kv_cache_dtype or spec.dtype], spec.device)


BACKENDS = [
    Backend("triton", lambda spec: "Triton kernels for NVIDIA GPUs", _triton_supports, _load_triton),
    Backend("cpu", _describe_native, _native_supports, _load_native),
    Backend("reference", lambda spec: "plain PyTorch", _reference_supports, _load_reference),
]


def report(spec: Spec, forced: str | None = None) -> list[Choice]:
    """One entry per backend, in order of preference; at most one is chosen."""
    choices, taken = [], False
    for backend in BACKENDS:
        reason = backend.supports(spec)
        if reason is None and forced is not None and backend.name != forced:
            reason = f"OCTAVO_BACKEND={forced}"
        elif reason is None and taken:
            reason = "a faster one was chosen"
        chosen = reason is None
        taken = taken or chosen
        choices.append(Choice(backend.name, chosen, reason or backend.describe(spec)))
    return choices


def choose(spec: Spec, forced: str | None = None) -> Ops:
    """The first backend that supports the spec, or the forced one; its notes say why no better one. Raises ConfigError
    with all reasons."""
    known = [backend.name for backend in BACKENDS]
    if forced is not None and forced not in known:
        raise ConfigError(f"OCTAVO_BACKEND={forced}: no such backend; there are {', '.join(known)}")
    choices = report(spec, forced)
    for backend, choice in zip(BACKENDS, choices, strict=True):
        if choice.chosen:
            ops = backend.load(spec)
            better = choices[: choices.index(choice)]
            ops.notes = [*ops.notes, *(f"not the {other.name} kernels: {other.reason}" for other in better)]
            return ops
    reasons = "; ".join(f"{choice.name}: {choice.reason}" for choice in choices)
    wanted = (
        spec.dtype if spec.kv_cache_dtype in (None, spec.dtype) else f"{spec.dtype}, KV cache {spec.kv_cache_dtype}"
    )
    raise ConfigError(f"no kernels for device {spec.device} with dtype {wanted} ({reasons})")
