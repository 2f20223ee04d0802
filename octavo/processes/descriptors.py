"""Standard input, output and error of a process whose starter has closed some of them; and its current folder, which
may be no more.

The next file opened would take the number of a closed one, and whatever is printed would go into it: into a client's
connection, say.
"""

from __future__ import annotations

import os
import sys


def open_standard() -> None:
    """Open those of descriptors 0 to 2 that are closed, on nothing. Before anything else is opened."""
    closed = [fd for fd in range(3) if not _is_open(fd)]
    for fd in closed:
        null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if null != fd:
            os.dup2(null, fd)
            os.close(null)
        os.set_inheritable(fd, True)
    # Python has made no streams of them, and libraries expect some.
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


def leave_removed_folder() -> None:
    """Go to / when the current folder is no more: libraries (MKL for one) end a process that has none."""
    try:
        os.getcwd()  # noqa: PTH109  (nothing more is imported before the command's first lines)
    except OSError:
        os.chdir("/")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
