"""How much of a file is resident through this process's mappings of it."""

from __future__ import annotations

from pathlib import Path


def mapped_bytes(file: Path) -> int:
    """Of the file's own mappings alone; those of torch's libraries grow as its code is first used. Linux only."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            ours = line.endswith(file.name)
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total
