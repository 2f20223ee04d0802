"""What the machine offers this process: cores, memory (both within its control groups' limits) and GPUs. Torch-free."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from octavo.config.cgroups import Limits, read_limits
from octavo.config.gpus import Cuda, find_gpus


@dataclass(frozen=True)
class Hardware:
    cpu_name: str
    cores: int
    """Cores this process may use."""
    memory_total: int
    memory_available: int
    """Bytes, the control groups' limits respected."""
    cpu_flags: frozenset[str]
    cuda: Cuda = field(default_factory=Cuda)

    @property
    def isa(self) -> list[str]:
        """The instruction sets among the flags that matter to kernels."""
        return [name for name in INSTRUCTION_SETS if name in self.cpu_flags]


INSTRUCTION_SETS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)
CPUS = Path("/sys/devices/system/cpu")


def _cpuinfo() -> tuple[str, frozenset[str]]:
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                return name, frozenset(value.split())
    except OSError:
        pass
    return name, flags


def _physical_cores(cpus: set[int], root: Path = CPUS) -> int:
    """How many different cores these logical CPUs are: two threads of one core share what kernels need."""
    try:
        parts = ("physical_package_id", "core_id")
        return len({tuple((root / f"cpu{n}/topology" / part).read_text() for part in parts) for n in cpus})
    except OSError:
        return min(len(cpus), psutil.cpu_count(logical=False) or len(cpus))


def usable_cores(limits: Limits | None = None) -> int:
    """Physical cores within this process's affinity (which a cpuset narrows), and no more than its control groups'
    share of time."""
    every = range(os.cpu_count() or 1)
    cores = _physical_cores(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(every))
    quota = (read_limits() if limits is None else limits).cores
    return max(1, min(cores, int(quota))) if quota else cores


def detect() -> Hardware:
    memory = psutil.virtual_memory()
    limits = read_limits()
    name, flags = _cpuinfo()
    return Hardware(
        cpu_name=name,
        cores=usable_cores(limits),
        memory_total=memory.total if limits.memory is None else min(memory.total, limits.memory),
        memory_available=(
            memory.available if limits.memory_left is None else min(memory.available, limits.memory_left)
        ),
        cpu_flags=flags,
        cuda=find_gpus(),
    )
