"""What every launch needs: where Triton's kernels can run, and block shapes from sizes. Used by the files beside it.

Triton is imported with these modules, never by the rest of the house. On a machine without a GPU its interpreter runs
the same kernels on CPU tensors when TRITON_INTERPRET=1 was set before the import: that is how the tests run here.

A kernel is compiled anew for integers that are 1 or divide by 16. Those that change from step to step are named in
`do_not_specialize`, so that no step waits for the compiler because of its number of tokens.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from octavo.env import triton_is_interpreted

INTERPRETED = triton_is_interpreted()
"""Whether kernels of this process are interpreted, on CPU tensors."""


def check_device(*tensors: Tensor) -> None:
    """Raises ValueError unless Triton can reach the tensors: on one GPU, or anywhere when it is interpreted."""
    first = tensors[0]
    for tensor in tensors:
        if tensor.device != first.device:
            raise ValueError(f"tensors are on {first.device} and {tensor.device}; a kernel needs them on one device")
    if first.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"Triton kernels run on CUDA tensors, not on {first.device}; for tests set TRITON_INTERPRET=1 before import"
        )


def warps_for(elements: int) -> int:
    """Warps of a program that holds so many elements of a row at once: 8 to 16 of them a thread, 16 bytes a load."""
    return 1 if elements <= 512 else 2 if elements <= 1024 else 4 if elements <= 2048 else 8 if elements <= 8192 else 16


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


ASSUMED = 90
"""Compute capability, ten times, of tensors that are on no GPU: kernels are interpreted, or only compiled."""


def capability_of(device: torch.device) -> int:
    """Compute capability, ten times."""
    return _capability(device) if device.type == "cuda" else ASSUMED


@cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the device; where kernels are interpreted those of an H200, so that the same paths run."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
