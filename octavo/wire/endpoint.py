"""Where client and engine meet: the path of a Unix socket, mostly in a private folder.

Called by whoever starts an engine or a client; wire/sockets.py speaks on what is made here. Invariant: only this user
can reach the socket, and an engine that listens keeps its path.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from octavo.errors import ConfigError
from octavo.processes.folder import RuntimeFolder
from octavo.processes.listen import listen_unix

RECEIVE_BYTES = 256 << 10
"""Read from a socket at a time."""
LINGER_S = 0.2
"""How long closing a socket waits for the peer to take what was sent."""
SCHEME = "ipc://"
MAX_PATH_BYTES = 107
"""A Unix socket's address holds 108 bytes, the last of them NUL."""
BACKLOG = 128
_SOCKET = "engine"
CRASH_SUFFIX = ".crash"
"""Of the file beside the socket in which an engine that breaks down leaves its last words."""
INFLIGHT_SUFFIX = ".inflight"
"""Of the one in which every engine keeps which requests it has."""


def check_endpoint(endpoint: str) -> str:
    """The path of an ipc:// endpoint. Raises ConfigError for other schemes and paths that no Unix socket can have."""
    path = endpoint.removeprefix(SCHEME)
    if not endpoint.startswith(SCHEME) or not path or "\0" in path or path.startswith("@"):
        raise ConfigError(f"endpoint {endpoint!r}: give ipc://PATH of a Unix socket")
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(f"endpoint {endpoint!r}: the path is longer than {MAX_PATH_BYTES} bytes; use a shorter one")
    return path


def meeting_place(where: list[Path] | None = None) -> RuntimeFolder:
    """A folder for an endpoint. Raises ConfigError when none can be made."""
    return RuntimeFolder(
        tuple(_SOCKET + suffix for suffix in ("", CRASH_SUFFIX, INFLIGHT_SUFFIX, INFLIGHT_SUFFIX + ".new")), where
    )


def endpoint_in(folder: RuntimeFolder) -> str:
    return f"{SCHEME}{folder.path}/{_SOCKET}"


@contextmanager
def private_endpoint(where: Path | None = None) -> Iterator[str]:
    """An endpoint inside a new folder that only this user may enter, removed at the end. `where`: in which folder,
    instead of the one for temporary files, if a socket's path can be so long."""
    with meeting_place(None if where is None else [where, Path("/tmp")]) as folder:
        yield endpoint_in(folder)


def restore_parent(path: str) -> None:
    """Make the folder of an endpoint's path again when it is gone, for this user alone. Raises ConfigError when it is
    somebody's who could put another socket there."""
    folder = Path(path).parent
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    if folder.stat().st_uid not in (0, os.getuid()):
        raise ConfigError(f"{folder} belongs to another user")


def listen(path: str) -> socket.socket:
    """A listening, non-blocking socket that only this user may use. What a killed engine left at the path is replaced.
    Raises ConfigError when an engine listens there, or nobody can."""
    try:
        return listen_unix(path, BACKLOG)
    except FileExistsError:
        raise ConfigError(
            f"endpoint {SCHEME}{path}: another engine listens there; stop it or choose another path"
        ) from None
    except OSError as error:
        raise ConfigError(f"endpoint {SCHEME}{path}: cannot listen there: {error.strerror}") from None
