"""What the kernel's control groups (cgroups) grant this process: a container's limits, a systemd unit's or a slice's.

A limit holds for everything below the group that has it, so all groups from the process's own to the root of what is
mounted are read, in version 2 (one hierarchy) and version 1 (one for each controller; both may be there).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Limits:
    """None: no limit."""

    cores: float | None = None
    """Cores' worth of time."""
    memory: int | None = None
    """Bytes, the least that a group may use."""
    memory_left: int | None = None
    """Bytes that can be had before a group's limit is met. What is kept of files does not count as used: the kernel
    gives it up first."""


@dataclass(frozen=True)
class _Mount:
    root: str
    """The group that is seen at `point`."""
    point: Path
    controllers: frozenset[str]
    """None of them: version 2."""


def read_limits(proc: Path = PROC) -> Limits:
    """`proc`: the process's folder in /proc. What cannot be read is no limit."""
    quotas = [found for group in _groups(proc, "cpu") if (found := _cores(group)) is not None]
    memory = [(limit, _used(group)) for group in _groups(proc, "memory") for limit in _memory_limits(group)]
    return Limits(
        cores=min(quotas, default=None),
        memory=min((limit for limit, _ in memory), default=None),
        memory_left=min((max(limit - used, 0) for limit, used in memory), default=None),
    )


def _groups(proc: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that limit the process, its own first."""
    mounts = _mounts(proc)
    for line in _lines(proc / "cgroup"):
        _, names, path = [*line.split(":", 2), "", ""][:3]
        wanted = controller if controller in names.split(",") else "" if not names else None
        for mount in mounts:
            if (wanted == "" and not mount.controllers) or wanted in mount.controllers:
                # A path that is not below what is mounted is seen from another namespace: then the mount is its own.
                inside = path.removeprefix(mount.root.rstrip("/"))
                is_below = inside != path or mount.root == "/"
                folder = mount.point / inside.strip("/") if is_below and "/.." not in inside else mount.point
                yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(mount.point)))
                break


def _mounts(proc: Path) -> list[_Mount]:
    found = []
    for line in _lines(proc / "mountinfo"):
        place, _, kind = line.partition(" - ")
        fields, about = place.split(), kind.split()
        if len(fields) < 5 or len(about) < 3 or about[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(about[2].split(",")) if about[0] == "cgroup" else frozenset[str]()
        found.append(_Mount(_unescaped(fields[3]), Path(_unescaped(fields[4])), controllers))
    return found


def _unescaped(text: str) -> str:
    """The kernel writes spaces and the like as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _lines(path: Path) -> list[str]:
    with suppress(OSError, ValueError):
        return path.read_text(errors="surrogateescape").splitlines()
    return []


def _numbers(path: Path) -> list[int]:
    """Of a file that holds nothing else; "max" is no number."""
    with suppress(OSError, ValueError):
        return [int(word) for word in path.read_text().split()]
    return []


def _cores(group: Path) -> float | None:
    both = _numbers(group / "cpu.max") or [
        *_numbers(group / "cpu.cfs_quota_us"),
        *_numbers(group / "cpu.cfs_period_us"),
    ]
    return both[0] / both[1] if len(both) == 2 and both[0] > 0 and both[1] > 0 else None


def _memory_limits(group: Path) -> list[int]:
    """Above memory.high a group is slowed down so much that it is a limit like memory.max."""
    return [
        number
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        for number in _numbers(group / name)
        if number >= 0
    ]


def _used(group: Path) -> int:
    """Bytes of a group and those below it, without what is kept of files."""
    used = sum([*_numbers(group / "memory.current"), *_numbers(group / "memory.usage_in_bytes")])
    parts = [line.split() for line in _lines(group / "memory.stat")]
    stat = {part[0]: int(part[1]) for part in parts if len(part) == 2 and part[1].isdecimal()}
    prefix = "total_" if "total_inactive_file" in stat else ""
    files = sum(stat.get(f"{prefix}{name}", 0) for name in ("active_file", "inactive_file"))
    return max(used - files, 0)
