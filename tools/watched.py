"""Runs one command of the set-up: all its output goes to a log, one line of progress to the terminal. On failure the
end of the log is shown.

Usage: watched.py LOG COMMAND... Called by tools/setup with the Python of .venv; nothing
is installed for it. It knows what pip and Ninja say; of a command that says nothing known it shows the seconds.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO, TextIO

SHOWN_AT_FAILURE = 40
QUIET_S, SAME_S = 10, 30
"""Where no terminal is, a line comes only so often; later if nothing has changed."""
_COMPILED = re.compile(r"^\s*\[(\d+)/(\d+)\] Building CXX object CMakeFiles/(\w+)\.dir/(\S+?)\.o\b")
_LINKED = re.compile(r"^\s*\[(\d+)/(\d+)\] Linking ")
_FOUND = re.compile(r"^(?:Collecting|Requirement already satisfied:) ([\w.-]+)")
_DOWNLOAD = re.compile(r"^\s*Downloading (?:\S*/)?([A-Za-z0-9_.]+?)-\d\S* \(([\d.]+ [kMG]?B)\)")
_CACHED = re.compile(r"^\s*Using cached (?:\S*/)?([A-Za-z0-9_.]+?)-\d\S*")
_INSTALL = re.compile(r"^Installing collected packages: (.*)")
_CONFIGURE = re.compile(r"^\s*\*\*\* Configuring CMake")


class Progress:
    """What the command is at, from the lines it writes."""

    def __init__(self, num_packages: int = 0) -> None:
        """`num_packages`: how many pip is to find, where that is known."""
        self.doing = ""
        self._found = 0
        self._of = f" of {num_packages}" if num_packages else ""

    def read(self, line: str) -> None:
        if match := _COMPILED.match(line):
            done, of, group, file = match.groups()
            target = "" if group in ("once", "_native") or group.startswith("nanobind") else f" for {group}"
            self.doing = f"compiled {done} of {of} files, last {Path(file).name}{target}"
        elif match := _LINKED.match(line):
            self.doing = "linking"
        elif _CONFIGURE.match(line):
            self.doing = "looking at the compiler"
        elif match := _FOUND.match(line):
            self._found += 1
            self.doing = f"package {self._found}{self._of}, {match[1]}"
        elif match := _DOWNLOAD.match(line):
            self.doing = f"package {self._found}{self._of}, downloading {match[1]} ({match[2]})"
        elif match := _CACHED.match(line):
            self.doing = f"package {self._found}{self._of}, {match[1]} (downloaded before)"
        elif match := _INSTALL.match(line):
            self.doing = f"unpacking {len(match[1].split(','))} packages"


class Shown:
    """The line of progress: written over on a terminal, else repeated now and then."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._said = ""
        self._last = 0.0

    def show(self, doing: str, seconds: float) -> None:
        text = f"    {seconds:.0f} s" + (f": {doing}" if doing else "")
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._out.write("\r" + text[:width] + "\033[K")
        elif seconds - self._last >= (QUIET_S if doing != self._said else SAME_S):
            self._said, self._last = doing, seconds
            self._out.write(text + "\n")
        self._out.flush()

    def clear(self) -> None:
        if self._is_terminal:
            self._out.write("\r\033[K")
            self._out.flush()


def num_pinned(file: Path) -> int:
    """Packages that a requirements file names, those of the files it includes too."""
    lines = file.read_text().splitlines()
    included = [num_pinned(file.parent / line.removeprefix("-r ").strip()) for line in lines if line.startswith("-r ")]
    return sum("==" in line and not line.startswith("#") for line in lines) + sum(included)


def watch(command: list[str], log: BinaryIO, out: TextIO) -> int:
    """→ the command's exit status. An interrupt reaches the command by itself, as it is in the same group."""
    num_packages = num_pinned(Path(command[command.index("-r") + 1])) if "-r" in command else 0
    progress, shown, started = Progress(num_packages), Shown(out), time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout is not None
    pipe, rest = child.stdout.fileno(), b""
    try:
        while True:
            shown.show(progress.doing, time.monotonic() - started)
            if not select.select([pipe], [], [], 1)[0]:
                continue
            data = os.read(pipe, 1 << 16)
            if not data:
                return child.wait()
            log.write(data)
            log.flush()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                progress.read(line.decode(errors="replace"))
    except KeyboardInterrupt:
        child.wait()
        return 130
    finally:
        child.stdout.close()
        shown.clear()


def main() -> int:
    path, command = Path(sys.argv[1]), sys.argv[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        begun = log.tell()
        status = watch(command, log, sys.stderr)
    if status not in (0, 130):
        with path.open("rb") as log:
            log.seek(begun)
            lines = log.read().decode(errors="replace").splitlines()
        sys.stderr.write("\n".join([*lines[-SHOWN_AT_FAILURE:], f"(all of it: {path})"]) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
