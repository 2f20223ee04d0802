"""Facts about this machine and this checkout, for results that are kept.

`python machine.py facts` and `python machine.py limits` print them as JSON: compare.py, whose own Python need not have
octavo, asks Octavo's for them.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def facts() -> dict[str, Any]:
    """cpu, cores (that this process may use), isa (the instruction sets that matter here), memory_mb, system."""
    from octavo.config.hardware import detect

    found = detect()
    system = f"{platform.system()} {platform.machine()}"
    memory = found.memory_total >> 20
    return {"cpu": found.cpu_name, "cores": found.cores, "isa": found.isa, "memory_mb": memory, "system": system}


def commit() -> str | None:
    """Of the checkout, with -dirty when files differ from it; None outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


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
    print(json.dumps({"facts": facts, "limits": limits}[sys.argv[1]]()))
