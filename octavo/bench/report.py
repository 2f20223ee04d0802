"""What a benchmark found: a table for people and a JSON file for comparisons, with all that a comparison must know."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

import octavo
from octavo.config.engine import EngineConfig
from octavo.config.hardware import detect
from octavo.errors import ConfigError
from octavo.wire.messages import EngineInfo

Figures = Mapping[str, Any]
"""Name → number, or (for the *_ms) percentile → number. Names end in their unit."""


def percentile(values: Sequence[float], percent: float) -> float:
    """With linear interpolation; 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    return {f"p{percent}": round(percentile(seconds, percent) * 1e3, 3) for percent in (50, 99)}


def check_writable(json_file: Path | None) -> None:
    """Raises ConfigError now rather than after minutes of measuring."""
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"--json {json_file}: the folder does not exist")


def report(
    benchmark: str,
    figures: Figures,
    load: Mapping[str, Any],
    *,
    config: EngineConfig | None,
    engine: EngineInfo | None,
    json_file: Path | None,
    console: Console | None = None,
) -> None:
    """Prints the table and writes the file. `load`: what was asked (lengths, counts, rates)."""
    console = console or Console()
    what = f"{engine.model} · {engine.backend} · {engine.dtype} on {engine.device}" if engine else ""
    table = Table(title=f"octavo bench {benchmark}", caption=what, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in {**load, **figures}.items():
        table.add_row(name, _shown(value))
    console.print(table)
    if json_file is not None:
        found = document(benchmark, figures, load, config=config, engine=engine)
        try:
            json_file.write_text(json.dumps(found, indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"--json {json_file}: {error.strerror}") from None


def document(
    benchmark: str, figures: Figures, load: Mapping[str, Any], *, config: EngineConfig | None, engine: EngineInfo | None
) -> dict[str, Any]:
    """The JSON file's content."""
    hardware = detect()
    return {
        "benchmark": benchmark,
        **figures,
        "load": dict(load),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {
            "cpu": hardware.cpu_name,
            "cores": hardware.cores,
            "memory_mb": hardware.memory_total >> 20,
            "gpus": [gpu.name for gpu in hardware.cuda.gpus],
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "octavo": octavo.__version__,
            "python": platform.python_version(),
            "torch": _version("torch"),
        },
        "engine": None if engine is None else _about(engine),
        "config": None if config is None else _about(config),
    }


def _about(values: msgspec.Struct) -> dict[str, Any]:
    """Without what differs from run to run or says where on the machine things lie."""
    found: dict[str, Any] = msgspec.to_builtins(values)
    for name in ("instance", "pid", "model_path"):
        found.pop(name, None)
    return {**found, "model": Path(found["model"]).name} if Path(found["model"]).exists() else found


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the source this runs from; None when it was installed from a wheel."""
    source = Path(octavo.__file__).parent.parent
    if not (source / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
