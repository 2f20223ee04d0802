"""The NVIDIA GPUs that this process may use, and what is installed to compute on them. Called by hardware.py.

Asks the driver's own library (NVML), which takes no memory on a GPU, and reads of PyTorch no more than the file of its
version. Invariant: whatever is missing or fails is a reason in words, never an exception.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from octavo import capability, env
from octavo.capability import dotted

DRIVER_LIBRARY = "libnvidia-ml.so.1"

Version = tuple[int, int]


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: Version
    memory_total: int
    memory_free: int
    """Bytes. Free: that no process has taken."""
    problem: str | None = None
    """Why the driver cannot tell more of it; the numbers are 0 then."""

    @property
    def memory_taken(self) -> int:
        return self.memory_total - self.memory_free


@dataclass(frozen=True)
class Cuda:
    gpus: tuple[Gpu, ...] = ()
    """In the order of cuda:0, cuda:1 …"""
    absent: str = "none was looked for"
    """Why there are none."""
    driver: Version | None = None
    """The latest CUDA that the driver knows."""
    torch: Version | None = None
    """The CUDA that PyTorch was built for; None: it was built without."""
    has_triton: bool = False

    def why_not(self, index: int) -> str | None:
        """None: cuda:`index` can be used; else the reason, and what to do."""
        if not self.gpus:
            return f"there is no GPU: {self.absent}"
        if index >= len(self.gpus):
            known = ", ".join(f"cuda:{i} ({gpu.name})" for i, gpu in enumerate(self.gpus))
            return f"there is no such GPU; there are {known}"
        gpu = self.gpus[index]
        if gpu.problem is not None:
            return f"{gpu.name} does not work: {gpu.problem}"
        if gpu.capability < capability.LEAST:
            return (
                f"{gpu.name} has compute capability {dotted(gpu.capability)}, and {dotted(capability.LEAST)} is needed"
            )
        return self._missing_software()

    def _missing_software(self) -> str | None:
        known = "" if self.driver is None else f"; the driver knows CUDA up to {dotted(self.driver)}"
        if self.torch is None:
            return (
                "PyTorch is installed without CUDA: install it for CUDA with the command that "
                f"https://pytorch.org/get-started/locally shows{known}"
            )
        if self.driver is not None and self.driver[0] < self.torch[0]:
            return (
                f"PyTorch is built for CUDA {dotted(self.torch)}, and the driver knows only {dotted(self.driver)}: "
                f"update the driver, or install PyTorch for CUDA {self.driver[0]}"
            )
        return None if self.has_triton else "Triton is not installed: pip install triton"


def find_gpus(nvml: Any = None) -> Cuda:
    """`nvml`: the module of the driver's library; None: pynvml, imported only where there is a driver."""
    if nvml is None:
        try:
            ctypes.CDLL(DRIVER_LIBRARY)
            nvml = importlib.import_module("pynvml")
        except OSError:
            return Cuda(absent="the NVIDIA driver is not installed")
        except ImportError:
            return Cuda(absent="its driver is asked through nvidia-ml-py, which is not installed")
    try:
        nvml.nvmlInit()
    except Exception as error:  # of a library with many kinds of them
        return Cuda(absent=f"the NVIDIA driver cannot be asked ({error})")
    try:
        return _ask(nvml)
    except Exception as error:
        return Cuda(absent=f"the NVIDIA driver does not answer ({error})")
    finally:
        nvml.nvmlShutdown()


def _ask(nvml: Any) -> Cuda:
    count = int(nvml.nvmlDeviceGetCount())
    if not count:
        return Cuda(absent="the NVIDIA driver finds none")
    visible = env.visible_gpus()
    gpus = []
    for name in [str(i) for i in range(count)] if visible is None else visible:
        if name.isdigit() and int(name) >= count:
            break  # nor does CUDA look any further
        gpus.append(_read(nvml, name, count))
    if not gpus:
        return Cuda(absent=f"CUDA_VISIBLE_DEVICES hides all {count}")
    if count > 1:
        env.number_gpus_as_the_driver()
    code = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    return Cuda(
        gpus=tuple(gpus),
        driver=(code // 1000, code % 1000 // 10),
        torch=torch_cuda(),
        has_triton=find_spec("triton") is not None,
    )


def _read(nvml: Any, name: str, count: int) -> Gpu:
    """`name`: its number, or its UUID or how that begins."""
    called = f"GPU {name}"
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else _by_uuid(nvml, name, count)
        called = _text(nvml.nvmlDeviceGetName(handle))
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except Exception as error:
        return Gpu(called, (0, 0), 0, 0, problem=str(error) or type(error).__name__)
    return Gpu(called, (int(major), int(minor)), int(memory.total), int(memory.free))


def _by_uuid(nvml: Any, uuid: str, count: int) -> Any:
    for index in range(count):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(uuid):
            return handle
    return nvml.nvmlDeviceGetHandleByUUID(uuid)  # a part of a GPU (MIG)


def _text(value: str | bytes) -> str:
    """Older versions of the library give bytes."""
    return value.decode() if isinstance(value, bytes) else value


def torch_cuda(version_file: Path | None = None) -> Version | None:
    """The CUDA that the installed PyTorch was built for, without importing it; None: it has none, or is not there."""
    if version_file is None:
        spec = find_spec("torch")
        if spec is None or spec.origin is None:
            return None
        version_file = Path(spec.origin).parent / "version.py"
    try:
        found = re.search(r"^cuda\b[^=\n]*=\s*['\"](\d+)\.(\d+)", version_file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else (int(found[1]), int(found[2]))
