"""The cores a process may use: physical ones, within affinity and the container's share of time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.config import hardware


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


@pytest.mark.parametrize(("files", "cores"), [
    ({"cpu.max": "max 100000\n"}, None), ({"cpu.max": "250000 100000\n"}, 2.5), ({}, None),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
])  # fmt: skip
def test_quotas_of_both_versions(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert hardware._cgroup_cores(tmp_path) == cores


def test_at_least_one_and_at_most_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_physical_cores", lambda cpus: 6)
    for quota, cores in ((None, 6), (0.5, 1), (3.9, 3), (64.0, 6)):
        monkeypatch.setattr(hardware, "_cgroup_cores", lambda quota=quota: quota)
        assert hardware.usable_cores() == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_is_respected() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert hardware.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
