"""The cache of fetched models: one folder per model under `env.cache_dir()/models`, filled by one process at a time.

Owns the lock, the private temporary folder and the stamp. Called by the sources in this folder. Invariant: a file that
the stamp names was complete, checked and on the disk before the stamp was written, so a stamp that still matches the
file's size and time makes hashing it again needless.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from octavo import env
from octavo.errors import DownloadError
from octavo.modelfiles.hub.progress import Progress, megabytes

STAMP = ".octavo-stamp.json"
_TEMPORARY = ".fetching-"
LOCK = ".octavo-lock"
_CHUNK = 1 << 20


class Stamp(msgspec.Struct, frozen=True):
    """What was true of a file when it was checked."""

    sha256: str
    size: int
    mtime_ns: int


def model_dir(*parts: str) -> Path:
    """The folder of one model. Creates nothing. `parts` are names, never paths."""
    for part in parts:
        if not part or part in (".", "..") or set(part) & {"/", "\\", "\0"}:
            raise DownloadError(f"{'/'.join(parts)!r} cannot be the name of a model")
    return env.cache_dir().joinpath("models", *parts)


def read_stamps(folder: Path) -> dict[str, Stamp]:
    try:
        return msgspec.json.decode((folder / STAMP).read_bytes(), type=dict[str, Stamp])
    except (OSError, msgspec.DecodeError):
        return {}


def is_intact(path: Path, stamp: Stamp | None, sha256: str | None = None) -> bool:
    """Whether `path` is still the file that was checked. A changed time costs one hash, a changed size none."""
    try:
        now = path.stat()
    except OSError:
        return False
    if stamp is None or now.st_size != stamp.size or (sha256 is not None and stamp.sha256 != sha256):
        return False
    return now.st_mtime_ns == stamp.mtime_ns or hash_file(path) == stamp.sha256


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def holding(folder: Path, label: str, progress: Progress) -> Iterator[None]:
    """Make `folder` and hold it alone among processes. OSError becomes a DownloadError that says what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("a") as lock:
            _wait_for(lock.fileno(), label, progress)
            yield
    except OSError as error:
        raise disk_error(error, folder, label) from error


@contextmanager
def filling(folder: Path, label: str, progress: Progress) -> Iterator[Path]:
    """Hold `folder` alone and yield a temporary folder on the same file system; both are tidied up at the end.

    What an earlier run left behind is removed first. Raises DownloadError as `holding` does.
    """
    with holding(folder, label, progress):
        for leftover in folder.glob(_TEMPORARY + "*"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _wait_for(lock: int, label: str, progress: Progress) -> None:
    told = False
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if not told:
            progress.note(f"{label}: another process is fetching it; waiting")
            told = True
        time.sleep(0.2)


def disk_error(error: OSError, folder: Path, label: str) -> DownloadError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_space(folder, label)
    return DownloadError(
        f"{label}: cannot write to {error.filename or folder}: {error.strerror or error}; "
        f"name another folder with {env.CACHE}"
    )


def no_space(folder: Path, label: str, needed: int | None = None) -> DownloadError:
    need = f" (about {megabytes(needed)} are needed)" if needed else ""
    return DownloadError(
        f"{label}: the disk of {folder} is full{need}; free some space or name another folder with {env.CACHE}"
    )


def check_space(folder: Path, label: str, needed: int) -> None:
    """Refuse before the download rather than near its end. `needed` in bytes."""
    if shutil.disk_usage(folder).free < needed:
        raise no_space(folder, label, needed)


def adopt(temporary: Path, target: Path, sha256: str, root: Path | None = None) -> None:
    """Move a complete, checked file to `target` and write its stamp in `root`, by default the target's folder."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    folder = root or target.parent
    temporary.replace(target)
    now = target.stat()
    stamp(folder, target.relative_to(folder).as_posix(), Stamp(sha256, now.st_size, now.st_mtime_ns))


def stamp(folder: Path, name: str, value: Stamp) -> None:
    stamps = read_stamps(folder) | {name: value}
    draft = folder / (STAMP + ".new")
    draft.write_bytes(msgspec.json.encode(stamps))
    draft.replace(folder / STAMP)
