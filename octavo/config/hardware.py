"""What the machine offers this process: cores (affinity and cgroup quota respected), memory and GPUs. Torch-free."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from octavo.config.gpus import Cuda, find_gpus


@dataclass(frozen=True)
class Hardware:
    cpu_name: str
    cores: int
    """Cores this process may use."""
    memory_total: int
    memory_available: int
    """Bytes, the cgroup's limit respected."""
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
CGROUPS = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")


def _cgroup_cores(root: Path = CGROUPS) -> float | None:
    """The cores' worth of time that the container grants (cgroup version 2, or 1)."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((root / file).read_text() for file in files).split()
            return None if quota in ("max", "-1") else int(quota) / int(period)
        except (OSError, ValueError):
            continue
    return None


def _cgroup_memory_left() -> int | None:
    try:
        limit = (CGROUPS / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit) - int((CGROUPS / "memory.current").read_text())
    except (OSError, ValueError):
        return None


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


def usable_cores() -> int:
    """Physical cores within this process's affinity, and no more than its container's share of time."""
    every = range(os.cpu_count() or 1)
    cores = _physical_cores(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(every))
    quota = _cgroup_cores()
    return max(1, min(cores, int(quota))) if quota else cores


def detect() -> Hardware:
    memory = psutil.virtual_memory()
    left = _cgroup_memory_left()
    name, flags = _cpuinfo()
    return Hardware(
        cpu_name=name,
        cores=usable_cores(),
        memory_total=memory.total,
        memory_available=min(memory.available, left) if left is not None else memory.available,
        cpu_flags=flags,
        cuda=find_gpus(),
    )
