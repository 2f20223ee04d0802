"""The private folder in which processes of one command meet: made for them alone, kept while they run, removed at the
end.

Invariants: only this user may enter it; nothing is ever removed but the files that are made here, in folders that hold
the mark made here.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from octavo.env import runtime_dir
from octavo.errors import ConfigError

PREFIX = "octavo-run-"
MARK = "octavo.lock"
_MARK_TEXT = b"Octavo's processes meet in this folder; it is removed when they end.\n"
_MOST_BYTES = 107 - len(f"/{PREFIX}") - 8 - len("/engine.crash")
"""A Unix socket's address holds 108 bytes, the last of them NUL; so long may the path be in which folders are made."""
STALE_S = 60.0
"""A folder is complete long before it is so old."""


class RuntimeFolder:
    """A new folder (0700) within one for temporary files; a context manager. `files`: names of all that will lie there.
    Folders that killed processes left behind are removed on the way."""

    def __init__(self, files: tuple[str, ...], where: list[Path] | None = None) -> None:
        """`where`: candidates, by default what $TMPDIR and $XDG_RUNTIME_DIR name and the usual places. Raises
        ConfigError when none of them will do."""
        self._files = files
        for candidate in _places() if where is None else where:
            with suppress(OSError):
                if len(os.fsencode(candidate.absolute())) > _MOST_BYTES:
                    continue
                _remove_stale(candidate, files)
                self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=candidate))
                self._lock = self._marked()
                break
        else:
            raise ConfigError(
                "there is no folder for temporary files that may be written; name one with TMPDIR, of at most "
                f"{_MOST_BYTES} bytes"
            )

    def __enter__(self) -> RuntimeFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)
        _remove(self.path, self._files)

    def restore(self) -> None:
        """Make it again if somebody has cleaned it away. Raises ConfigError when that cannot be done."""
        try:
            with suppress(FileExistsError):
                self.path.mkdir(0o700)
            if not _is_ours(self.path):
                raise ConfigError(f"{self.path}: another user has taken this folder, in which Octavo's processes meet")
            if (self.path / MARK).exists():
                return
            os.close(self._lock)
            self._lock = self._marked()
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be made again: {error.strerror}") from None

    def _marked(self) -> int:
        """A descriptor whose lock, with the mark's file, says that somebody is here."""
        fd = os.open(self.path / MARK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, _MARK_TEXT)
        except OSError:
            os.close(fd)
            raise
        return fd


def _places() -> list[Path]:
    """Where a folder may be made, the best first. A runtime folder of the user ends with the user's session."""
    places = [Path("/tmp"), Path("/dev/shm")]
    if (named := runtime_dir()) is not None:
        places.insert(1, named)
    with suppress(OSError):  # none can be written of those that are usual
        places.insert(0, Path(tempfile.gettempdir()))
    return list(dict.fromkeys(places))


def _is_ours(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def _remove_stale(where: Path, files: tuple[str, ...]) -> None:
    """Those that hold our mark, are old enough to be complete and whose lock nobody holds."""
    for folder in where.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if not _is_ours(folder) or time.time() - folder.lstat().st_mtime < STALE_S:
                continue
            fd = os.open(folder / MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.read(fd, len(_MARK_TEXT) + 1) == _MARK_TEXT:
                    _remove(folder, files)
            finally:
                os.close(fd)


def _remove(folder: Path, files: tuple[str, ...]) -> None:
    """Our files, and the folder if nothing else lies there."""
    for name in (*files, MARK):
        with suppress(OSError):
            (folder / name).unlink()
    with suppress(OSError):
        folder.rmdir()
