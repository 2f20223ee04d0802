"""Who computes: the list of backends, what each supports, and the choice of one, with reasons. Called by the worker
at load and by `octavo doctor`.

Adding a backend: its folder, one entry in BACKENDS, in order of preference. Backends are imported when chosen.
"""

from __future__ import annotations

from importlib.util import find_spec

from octavo import capability
from octavo.env import triton_is_interpreted
from octavo.errors import ConfigError
from octavo.kernels import choice
from octavo.kernels.choice import Backend, Choice, Spec
from octavo.kernels.layouts import DTYPES
from octavo.kernels.ops import Ops

__all__ = ["BACKENDS", "Backend", "Choice", "Spec", "attention_report", "choose", "report"]


def _reference_supports(spec: Spec) -> str | None:
    if spec.device != "cpu":
        return f"runs on the CPU, not on {spec.device}"
    if spec.kv_cache_dtype not in (None, spec.dtype):
        return f"has no KV cache of {spec.kv_cache_dtype} beside {spec.dtype}"
    return None if spec.dtype in DTYPES else f"does not know dtype {spec.dtype}"


def _load_reference(spec: Spec) -> Ops:
    from octavo.kernels.reference.backend import ReferenceOps

    if spec.dtype != "float16":
        return ReferenceOps(DTYPES[spec.dtype], spec.device, spec.threads)
    ops = ReferenceOps(DTYPES["float32"], spec.device, spec.threads)
    ops.notes = ["float16 is held and computed as float32: PyTorch's own is slow and overflows on a CPU"]
    return ops


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
    if spec.device == "cpu" and triton_is_interpreted():
        return None if spec.dtype == "float32" else "is interpreted on the CPU, in float32 only"
    if not spec.device.startswith("cuda"):
        return f"runs on an NVIDIA GPU, not on {spec.device}"
    import torch

    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU with a driver it can use"
    from octavo.kernels.triton.backend import KV_TYPES

    kv = spec.kv_cache_dtype or spec.dtype
    if kv not in KV_TYPES:
        return f"has no KV cache of {kv}; there are {', '.join(KV_TYPES)}"
    return capability.why_not(torch.cuda.get_device_capability(spec.device), kv)


def _load_triton(spec: Spec) -> Ops:
    from octavo.kernels import attention
    from octavo.kernels.triton.backend import KV_TYPES, TritonOps

    chosen, notes = attention.choose(spec)
    ops = TritonOps(DTYPES[spec.dtype], KV_TYPES[spec.kv_cache_dtype or spec.dtype], spec.device, chosen)
    ops.notes = [*ops.notes, *notes]
    return ops


BACKENDS: list[Backend[Ops]] = [
    Backend("cpu", _describe_native, _native_supports, _load_native),
    Backend("reference", lambda spec: "plain PyTorch", _reference_supports, _load_reference),
    # Last: on a CPU, where it can only be interpreted, it has to be asked for.
    Backend("triton", lambda spec: "Triton kernels for NVIDIA GPUs", _triton_supports, _load_triton),
]


def report(spec: Spec, forced: str | None = None) -> list[Choice]:
    """One entry per backend, in order of preference; at most one is chosen."""
    return choice.report(BACKENDS, spec, forced, "OCTAVO_BACKEND=")


def attention_report(spec: Spec) -> list[Choice]:
    """The same for attention, which has a choice of its own on a GPU only; [] elsewhere."""
    from octavo.kernels import attention

    return attention.report(spec) if spec.device.startswith("cuda") else []


def choose(spec: Spec, forced: str | None = None) -> Ops:
    """The first backend that supports the spec, or the forced one; its notes say why no better one. Raises ConfigError
    with all reasons."""
    known = [backend.name for backend in BACKENDS]
    if forced is not None and forced not in known:
        raise ConfigError(f"OCTAVO_BACKEND={forced}: no such backend; there are {', '.join(known)}")
    choices = report(spec, forced)
    for backend, found in zip(BACKENDS, choices, strict=True):
        if found.chosen:
            ops = backend.load(spec)
            ops.notes = [*ops.notes, *choice.not_the_better(choices, "kernels")]
            return ops
    reasons = "; ".join(f"{found.name}: {found.reason}" for found in choices)
    wanted = (
        spec.dtype if spec.kv_cache_dtype in (None, spec.dtype) else f"{spec.dtype}, KV cache {spec.kv_cache_dtype}"
    )
    raise ConfigError(f"no kernels for device {spec.device} with dtype {wanted} ({reasons})")
