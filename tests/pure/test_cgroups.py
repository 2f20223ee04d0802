"""Limits of the process's own control groups, in both versions, nested, and seen from within a namespace."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from octavo.config.cgroups import Limits, read_limits

MIB = 1 << 20
UNLIMITED = "9223372036854771712\n"


class Machine:
    """A /proc/self and mounted hierarchies, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "proc").mkdir()
        self.mountinfo = ["21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
        self.cgroup: list[str] = []

    def mount(self, name: str, controllers: str = "", root: str = "/") -> Path:
        point = self.folder / name
        point.mkdir(parents=True, exist_ok=True)
        where = str(point).replace(" ", "\\040")
        kind = f"cgroup cgroup rw,{controllers}" if controllers else "cgroup2 cgroup2 rw,nsdelegate"
        self.mountinfo.append(f"30 21 0:26 {root} {where} rw,nosuid shared:4 - {kind}")
        return point

    def limits(self) -> Limits:
        (self.folder / "proc/mountinfo").write_text("\n".join(self.mountinfo) + "\n")
        (self.folder / "proc/cgroup").write_text("\n".join(self.cgroup) + "\n")
        return read_limits(self.folder / "proc")


def write(group: Path, **files: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (group / name.replace("_", ".", 1)).write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_machine_without_groups(machine: Machine, tmp_path: Path) -> None:
    assert machine.limits() == Limits()
    assert read_limits(tmp_path / "none") == Limits()


def test_a_systemd_unit(machine: Machine) -> None:
    """Version 2: the unit's own limit, not the root's."""
    root = machine.mount("cgroup with space")
    machine.cgroup = ["0::/system.slice/octavo.service"]
    write(root / "system.slice", cpu_max="max 100000\n", memory_max="max\n", memory_high="max\n")
    write(
        root / "system.slice/octavo.service",
        cpu_max="150000 100000\n",
        memory_max=f"{1500 * MIB}\n",
        memory_high="max\n",
        memory_current=f"{900 * MIB}\n",
        memory_stat=f"anon 1\nactive_file {100 * MIB}\ninactive_file {300 * MIB}\n",
    )
    assert machine.limits() == Limits(cores=1.5, memory=1500 * MIB, memory_left=1000 * MIB)


def test_the_least_of_nested_groups_holds(machine: Machine) -> None:
    root = machine.mount("cgroup")
    machine.cgroup = ["0::/a.slice/b.scope/payload"]
    write(root / "a.slice", cpu_max="100000 100000", memory_max=str(800 * MIB), memory_current=str(700 * MIB))
    write(root / "a.slice/b.scope", cpu_max="400000 100000", memory_high=str(600 * MIB), memory_current=str(50 * MIB))
    write(root / "a.slice/b.scope/payload", cpu_max="max 100000", memory_max="max", memory_current=str(40 * MIB))
    assert machine.limits() == Limits(cores=1.0, memory=600 * MIB, memory_left=100 * MIB)


def test_version_1_has_a_hierarchy_for_each_controller(machine: Machine) -> None:
    cpu, memory = machine.mount("cpu", "cpu,cpuacct"), machine.mount("memory", "memory")
    machine.mount("unified")
    machine.cgroup = ["4:memory:/w/x", "1:cpu,cpuacct:/w", "2:name=systemd:/", "0::/"]
    write(cpu / "w", cpu_cfs_quota_us="50000\n", cpu_cfs_period_us="100000\n")
    write(cpu, cpu_cfs_quota_us="-1\n", cpu_cfs_period_us="100000\n")
    write(memory, memory_limit_in_bytes=UNLIMITED, memory_usage_in_bytes="5\n")
    write(
        memory / "w",
        memory_limit_in_bytes=str(500 * MIB),
        memory_usage_in_bytes=str(450 * MIB),
        memory_stat=f"inactive_file 0\nactive_file 0\ntotal_inactive_file {150 * MIB}\ntotal_active_file 0\n",
    )
    write(memory / "w/x", memory_limit_in_bytes=UNLIMITED, memory_usage_in_bytes="5\n")
    assert machine.limits() == Limits(cores=0.5, memory=500 * MIB, memory_left=200 * MIB)


@pytest.mark.parametrize("path", ["/docker/abc", "/", "/../other", "/docker/gone"])
def test_a_container_sees_its_group_at_the_mount(machine: Machine, path: str) -> None:
    """With and without a namespace of its own; a path from elsewhere leads to no other folder."""
    point = machine.mount("memory", "memory", root="/docker/abc" if "docker" in path else "/")
    machine.cgroup = [f"4:memory:{path}"]
    write(point, memory_limit_in_bytes=str(300 * MIB), memory_usage_in_bytes=str(100 * MIB))
    write(machine.folder / "other", memory_limit_in_bytes="1")
    assert machine.limits() == Limits(memory=300 * MIB, memory_left=200 * MIB)


def test_a_group_over_its_limit_has_nothing_left(machine: Machine) -> None:
    root = machine.mount("cgroup")
    machine.cgroup = ["0::/"]
    write(root, memory_max=str(MIB), memory_current=str(3 * MIB))
    assert machine.limits().memory_left == 0


def test_what_is_no_number_is_no_limit(machine: Machine) -> None:
    """Whatever stands in these files, the start goes on."""
    root = machine.mount("cgroup")
    rng = random.Random(1)
    words = [
        "max",
        "",
        "-1",
        "0",
        "0 0",
        "1 2 3",
        "x",
        "\0",
        "1e9",
        "999999999999999999999",
        "100000 0",
        ":",
        "a:b",
        "active_file x",
    ]
    for _ in range(200):
        machine.cgroup = [rng.choice(["0::/", "0::", "0", "", "1:cpu", "0::/a/../..", *words])]
        for name in ("cpu.max", "memory.max", "memory.high", "memory.current", "memory.stat", "cpu.cfs_quota_us"):
            (root / name).write_text(rng.choice(words))
        machine.limits()
