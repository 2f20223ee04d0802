"""How long a GPU waits for the host between pieces of work, read from a trace of PyTorch's profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def traced(work: Callable[[], object]) -> list[dict[str, Any]]:
    """Runs `work`; → what ran on the device meanwhile, as the trace has it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as found:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event.get("cat") in ON_DEVICE]


def idle_between_launches(events: Iterable[Mapping[str, Any]], skip: float = 0.0) -> tuple[float, float]:
    """→ seconds in which the device had nothing to do between what the host launched, and seconds from the first event
    to the last. The kernels of one graph are one launch: what lies between them is not the host's. `skip`: the share of
    the time that is left out at the beginning, when nothing waits in the queue yet."""
    ordered = sorted(events, key=lambda event: event["ts"])
    if ordered:
        first, last = ordered[0]["ts"], ordered[-1]["ts"]
        ordered = [event for event in ordered if event["ts"] >= first + skip * (last - first)]
    if not ordered:
        return 0.0, 0.0
    idle, end, launch = 0.0, float(ordered[0]["ts"]), None
    for event in ordered:
        correlation = event["args"].get("correlation")
        if launch is not None and correlation != launch:
            idle += max(event["ts"] - end, 0.0)
        end, launch = max(end, event["ts"] + event["dur"]), correlation
    return idle / 1e6, (end - ordered[0]["ts"]) / 1e6
