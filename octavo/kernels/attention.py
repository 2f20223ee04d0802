"""Who computes attention on a GPU: FlashInfer, our Triton kernels or plain PyTorch, in order of preference, and the
choice of one with reasons. Asked by the registry when it loads the Triton backend and by `octavo doctor`; forced by
--attention-backend. On the CPU attention belongs to the backend, and there is nothing to choose.

Adding one: a callable with the meaning of Ops.attention, one entry in BACKENDS.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from octavo import capability
from octavo.env import cuda_home
from octavo.errors import ConfigError
from octavo.kernels import choice
from octavo.kernels.choice import Backend, Choice, Spec
from octavo.kernels.step import Step

OPTION = "--attention-backend "


class Attention(Protocol):
    """See Ops.attention; pages are [2, blocks, block_size, kv_heads, head_dim]. May keep a plan of the step at hand,
    by its identity."""

    def __call__(
        self, q: Tensor, kv: Tensor, step: Step, scale: float, window: int | None = None, soft_cap: float | None = None
    ) -> Tensor: ...


def _flashinfer_supports(spec: Spec) -> str | None:
    if not spec.device.startswith("cuda"):
        return f"runs on an NVIDIA GPU, not on {spec.device}"
    if find_spec("flashinfer") is None:
        return "flashinfer is not installed (pip install flashinfer-python)"
    from octavo.kernels import flashinfer

    if (reason := flashinfer.supports(spec.dtype, spec.kv_cache_dtype or spec.dtype, spec.head_dim)) is not None:
        return reason
    if find_spec("flashinfer_jit_cache") is None and not (_has_nvcc() and shutil.which("ninja")):
        return (
            "flashinfer compiles its kernels when they are first used, and nvcc or ninja is missing; install either "
            "both or flashinfer-jit-cache"
        )
    return None


def _has_nvcc() -> bool:
    return shutil.which("nvcc") is not None or (cuda_home() / "bin" / "nvcc").exists()


def _load_flashinfer(spec: Spec) -> Attention:
    from octavo.kernels.flashinfer import FlashInferAttention

    return FlashInferAttention(spec.device)


def _triton_supports(spec: Spec) -> str | None:
    if find_spec("triton") is None:
        return "triton is not installed"
    if not spec.device.startswith("cuda") or not torch.cuda.is_available():
        return None  # the registry has a word on that
    return capability.why_not(torch.cuda.get_device_capability(spec.device), spec.kv_cache_dtype or spec.dtype)


def _load_triton(spec: Spec) -> Attention:
    from octavo.kernels.triton.attention import attention

    return attention


def _load_torch(spec: Spec) -> Attention:
    from octavo.kernels.reference.attention import PlannedAttention

    return PlannedAttention()


BACKENDS: list[Backend[Attention]] = [
    Backend("flashinfer", lambda spec: "FlashInfer over our page table", _flashinfer_supports, _load_flashinfer),
    Backend("triton", lambda spec: "Octavo's Triton kernels", _triton_supports, _load_triton),
    Backend("torch", lambda spec: "pages gathered, then PyTorch's attention", lambda spec: None, _load_torch),
]


def _forced(spec: Spec) -> str | None:
    return None if spec.attention == "auto" else spec.attention


def report(spec: Spec) -> list[Choice]:
    """One entry per backend, in order of preference; at most one is chosen."""
    return choice.report(BACKENDS, spec, _forced(spec), OPTION)


def choose(spec: Spec) -> tuple[Attention, list[str]]:
    """The first backend that supports the spec, or the forced one, with notes for the user. Raises ConfigError."""
    forced, choices = _forced(spec), report(spec)
    for backend, found in zip(BACKENDS, choices, strict=True):
        if found.chosen:
            notes = [f"attention by {found.name}: {found.reason}", *choice.not_the_better(choices, "attention")]
            return backend.load(spec), notes
    known = {found.name: found.reason for found in choices}
    assert forced is not None, "torch supports everything"
    reason = known.get(forced, f"no such attention; there are auto, {', '.join(known)}")
    raise ConfigError(f"{OPTION}{forced}: {reason}; use auto or another")
