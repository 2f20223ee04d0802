"""Where client and engine meet: the path of a Unix socket, mostly in a private folder.

Called by whoever starts an engine or a client; wire/sockets.py speaks on what is made here. Invariant: only this user
can reach the socket, and an engine that listens keeps its path.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from octavo.errors import ConfigError

SCHEME = "ipc://"
MAX_PATH_BYTES = 107
"""A Unix socket's address holds 108 bytes, the last of them NUL."""
BACKLOG = 128
_PREFIX = "octavo-"


def check_endpoint(endpoint: str) -> str:
    """The path of an ipc:// endpoint. Raises ConfigError for other schemes and paths that no Unix socket can have."""
    path = endpoint.removeprefix(SCHEME)
    if not endpoint.startswith(SCHEME) or not path or "\0" in path or path.startswith("@"):
        raise ConfigError(f"endpoint {endpoint!r}: give ipc://PATH of a Unix socket")
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(f"endpoint {endpoint!r}: the path is longer than {MAX_PATH_BYTES} bytes; use a shorter one")
    return path


@contextmanager
def private_endpoint(folder: Path | None = None) -> Iterator[str]:
    """An endpoint inside a new folder that only this user may enter (0700), removed at the end. `folder`: where,
    instead of the folder for temporary files. Folders that killed processes left behind are removed on the way."""
    where = next(
        path
        for path in [folder or Path(tempfile.gettempdir()), Path("/tmp")]
        if len(os.fsencode(path / _PREFIX)) + 32 <= MAX_PATH_BYTES or path == Path("/tmp")
    )
    _remove_stale(where)
    inside = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
    lock = (inside / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield f"{SCHEME}{inside}/engine"
    finally:
        lock.close()
        shutil.rmtree(inside, ignore_errors=True)


def _remove_stale(where: Path) -> None:
    """A folder is stale when it is ours, old enough to be complete, and nobody holds its lock."""
    for folder in where.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < 60:
                continue
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def listen(path: str) -> socket.socket:
    """A listening, non-blocking socket that only this user may use. What a killed engine left at the path is replaced.
    Raises ConfigError when an engine listens there, or nobody can."""
    _refuse_taken(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    umask = os.umask(0o177)
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(Path(path).lstat().st_mode):
                Path(path).unlink()
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"endpoint {SCHEME}{path}: cannot listen there: {error.strerror}") from None
    finally:
        os.umask(umask)
    return listener


def _refuse_taken(path: str) -> None:
    """Binding anew would silently take the path from an engine that already listens there."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(1.0)
    try:
        probe.connect(path)
    except OSError:
        return
    finally:
        probe.close()
    raise ConfigError(f"endpoint {SCHEME}{path}: another engine listens there; stop it or choose another path")
