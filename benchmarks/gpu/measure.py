"""How long a call takes on a GPU, and what the GPU can do at most: events around replays of a graph, medians, over so
many sets of arguments that no cache holds them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

LEAST_LAUNCHES, MOST_LAUNCHES = 8, 256
LEAST_SECONDS, LEAST_REPLAYS, MOST_REPLAYS = 0.03, 5, 50


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of all replays, and the middle half of them."""

    seconds: float
    low: float
    high: float
    method: str
    """graph, or events around calls from the host where a call cannot be captured."""


def elapsed(work: Callable[[], object]) -> float:
    """Seconds on the device from before to after what `work` gives it."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def timing(calls: Sequence[Callable[[], object]]) -> Timing:
    """Of one of `calls`, which are alike, one after the other."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    once = elapsed(lambda: [call() for call in calls]) / len(calls)
    rounds = max(1, min(round(1e-3 / max(once, 1e-7)), MOST_LAUNCHES) // len(calls), LEAST_LAUNCHES // len(calls))
    every = [call for _ in range(rounds) for call in calls]
    method, run = "graph", _captured(every)
    if run is None:
        method, run = "events", lambda: [call() for call in every]
    run()
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < LEAST_REPLAYS or (sum(times) < LEAST_SECONDS and len(times) < MOST_REPLAYS):
        times.append(elapsed(run) / len(every))
    times.sort()
    n = len(times)
    return Timing(statistics.median(times), times[n // 4], times[n - 1 - n // 4], method)


def _captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object] | None:
    """A replay of all calls. Their results are kept until the last is captured, so that each has memory of its own."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = [call() for call in calls]
    except RuntimeError:  # a call that reads something back; PyTorch has ended the capture
        torch.cuda.synchronize()
        return None
    del kept
    return graph.replay


def copy_rate(device: torch.device, nbytes: int = 4 << 30) -> float:
    """Bytes a second of a copy on the device, read and written both counted."""
    source = torch.randint(0, 255, (nbytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / timing([lambda: target.copy_(source)]).seconds


def matmul_rate(device: torch.device, size: int = 8192) -> float:
    """Operations a second of a large product of random bf16."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 2 * size**3 / timing([lambda: F.linear(a, b)]).seconds


def num_sets(footprint: int, cache: int, most: int = 256) -> tuple[int, bool]:
    """Sets of arguments of so many bytes, and whether together they are larger than three caches."""
    wanted = max(2, -(-3 * cache // max(footprint, 1)))
    return min(wanted, most), wanted <= most
