"""What the machine offers this process: cores (affinity and cgroup quota respected) and memory. Torch-free."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Hardware:
    cpu_name: str
    cores: int
    """Cores this process may use."""
    memory_total: int
    memory_available: int
    """Bytes, the cgroup's limit respected."""
    cpu_flags: frozenset[str]


def _cgroup_cores() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _cgroup_memory_left() -> int | None:
    base = Path("/sys/fs/cgroup")
    try:
        limit = (base / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit) - int((base / "memory.current").read_text())
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


def usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or cores
    cores = min(cores, max(physical, 1))
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
    )
