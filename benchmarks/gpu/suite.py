"""What the checks on a GPU have in common beside timings: the tests that come first, and on what all of it ran."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def run_tests(paths: Sequence[str], log: Path, until: float, processes: int = 1) -> dict[str, Any]:
    """pytest over `paths`, ended at `until`; its output goes to `log`. `exit` is None where it did not end."""
    # Other plug-ins that a machine may have are left out: the suite takes warnings for errors, theirs too.
    plugins = [f"-p{name}" for name in ("pytest_timeout", "xdist.plugin") if find_spec(name.split(".")[0])]
    parallel = ["-n", str(processes)] if "-pxdist.plugin" in plugins and processes > 1 else []
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-pno:cacheprovider", *plugins, *parallel, *paths]
    began = time.time()
    try:
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(until - began, 1)
        )
        output, code = ran.stdout + ran.stderr, ran.returncode
    except subprocess.TimeoutExpired as late:
        output, code = (late.stdout or b"").decode(errors="replace"), None
    log.write_text(output)
    last = output.strip().splitlines()[-1:] or [""]
    numbers = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last[0])}
    return {"exit": code, "ended": code is not None, **numbers, "summary": last[0], "seconds": time.time() - began}


def facts(packages: Sequence[str], on_gpu: bool) -> dict[str, Any]:
    """Date, commit, versions, device. Loads PyTorch on a GPU alone."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", *packages):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    device = "none"
    if on_gpu:
        import torch

        versions["torch"], versions["cuda"] = torch.__version__, torch.version.cuda
        device = torch.cuda.get_device_name()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or os.environ.get("COMMIT", "unknown"),
        "versions": versions,
        "device": device,
    }
