"""Facts about this machine and this checkout, for results that are kept. Standard library and, for limits, octavo.

`python machine.py` prints the measured limits of the machine as JSON; compare.py asks Octavo's own Python for them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHOWN = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


def facts() -> dict[str, Any]:
    """cpu, cores (that this process may use), isa (the instruction sets that matter here), memory_mb, system."""
    name, flags = _cpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": name, "cores": cores, "isa": [f for f in SHOWN if f in flags], "memory_mb": memory, "system": system}


def commit() -> str | None:
    """Of the checkout, with -dirty when files differ from it; None outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _cpu() -> tuple[str, frozenset[str]]:
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


def limits(isa: str = "", threads: int | None = None) -> dict[str, float]:
    """Measured on as many threads as there are cores: read_gb_s of memory; int8_gops, bf16_gops, f32_gops: operations
    (a multiplication and an addition are two) in the instructions that `isa`'s kernels use. Takes about a second.
    Raises ImportError where the native kernels are not built."""
    from octavo.kernels.cpu import _native

    pool = _native.Pool(threads or facts()["cores"])
    found = {"read_gb_s": _native.probe(pool, "read", isa) / 1e9}
    for kind in ("int8", "bf16", "f32"):
        found[f"{kind}_gops"] = _native.probe(pool, kind, isa) / 1e9
    return {name: round(value, 1) for name, value in found.items()}


if __name__ == "__main__":
    print(json.dumps(limits(*sys.argv[1:])))
