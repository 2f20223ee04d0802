"""Starts another Python of our own: the same interpreter and module path, entered at a function by its name.

Invariant: nothing of the work shows in the command line, which anybody may read; it is told through a pipe or socket.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

from octavo.processes.descriptors import leave_removed_folder

_COMMAND = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"


def command(module: str) -> str:
    """The Python text that runs `main` of `module`."""
    return _COMMAND.format(path=[path for path in sys.path if path], module=module)


def spawn(
    module: str,
    *,
    stdin: int,
    stdout: int | None = None,
    stderr: int | None = None,
    pass_fds: tuple[int, ...] = (),
    env: Mapping[str, str] | None = None,
    own_session: bool = False,
) -> subprocess.Popen[bytes]:
    """A process in which `main()` of `module` runs. `env`: None is this process's; `own_session`: the terminal's Ctrl-C
    does not reach it. Raises OSError where the system has no process to give."""
    leave_removed_folder()  # it may have been removed meanwhile
    return subprocess.Popen(
        [sys.executable, "-c", command(module)],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        env=env,
        start_new_session=own_session,
    )
