"""The cores a process may use: physical ones, within affinity and the container's share of time."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from octavo.config import hardware
from octavo.config.cgroups import Limits


def topology(root: Path, cores: list[tuple[int, int]]) -> Path:
    for cpu, (package, core) in enumerate(cores):
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{package}\n")
        (folder / "core_id").write_text(f"{core}\n")
    return root


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    root = topology(tmp_path, [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 1)])
    assert hardware._physical_cores({0, 1, 2, 3, 4, 5}, root) == 4
    assert hardware._physical_cores({0, 2}, root) == 1
    assert hardware._physical_cores({0, 4}, root) == 2


def test_without_topology_the_number_of_cpus_is_what_there_is(tmp_path: Path) -> None:
    assert hardware._physical_cores({0}, tmp_path / "nowhere") == 1


def test_at_least_one_and_at_most_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_physical_cores", lambda cpus: 6)
    for quota, cores in ((None, 6), (0.5, 1), (3.9, 3), (64.0, 6)):
        assert hardware.usable_cores(Limits(cores=quota)) == cores


@pytest.mark.parametrize(("limits", "total", "available"), [
    (Limits(), 1000, 600), (Limits(memory=400, memory_left=300), 400, 300),
    (Limits(memory=9223372036854771712, memory_left=9223372036854000000), 1000, 600),
    (Limits(memory=900, memory_left=890), 900, 600),
])  # fmt: skip
def test_memory_within_the_groups(monkeypatch: pytest.MonkeyPatch, limits: Limits, total: int, available: int) -> None:
    monkeypatch.setattr(hardware, "read_limits", lambda: limits)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=1000, available=600))
    found = hardware.detect()
    assert (found.memory_total, found.memory_available) == (total, available)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_is_respected() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert hardware.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
