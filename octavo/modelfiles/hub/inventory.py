"""Which models lie in the cache, and how one is removed. Reads names, sizes and times of files; opens no model."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from octavo import env
from octavo.errors import DownloadError
from octavo.modelfiles.hub import store
from octavo.modelfiles.hub.demos import DEMOS

SOURCES = ("huggingface", "modelscope")


@dataclass(frozen=True)
class Cached:
    """A model in the cache, complete or begun."""

    name: str
    """As MODEL takes it."""
    source: str
    """demo, or the hub."""
    folder: Path
    num_bytes: int
    modified: float
    """Unix seconds of its newest file."""

    @property
    def is_complete(self) -> bool:
        """Whether a download has ended; a hub's model may have another file still to come."""
        return any(self.folder.rglob(store.STAMP))


def inventory() -> list[Cached]:
    """By name. A cache that cannot be read holds nothing."""
    return sorted((_measured(*found) for found in _folders()), key=lambda model: model.name)


def _folders() -> Iterator[tuple[str, str, Path]]:
    root = env.cache_dir() / "models"
    for folder in _inside(root):
        if folder.name in DEMOS:
            yield folder.name, "demo", folder
        elif folder.name in SOURCES:
            for organisation in _inside(folder):
                for home in _inside(organisation):
                    yield f"{organisation.name}/{home.name}", folder.name, home


def _inside(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []


def _measured(name: str, source: str, folder: Path) -> Cached:
    size, modified = 0, 0.0
    for path in folder.rglob("*"):
        try:
            found = path.stat()
        except OSError:  # removed meanwhile
            continue
        if path.is_file() and not path.is_symlink():
            size, modified = size + found.st_size, max(modified, found.st_mtime)
    return Cached(name, source, folder, size, modified)


def remove(model: Cached) -> None:
    """Take a model out of the cache. Raises DownloadError while it is being fetched, or where the disk refuses."""
    try:
        with (model.folder / store.LOCK).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DownloadError(f"{model.name}: another process is fetching it; wait or end that first") from None
            shutil.rmtree(model.folder)
            parent = model.folder.parent
            if parent.parent.name in SOURCES and not any(parent.iterdir()):
                parent.rmdir()
    except OSError as error:
        raise DownloadError(f"{model.name}: cannot be removed from {model.folder}: {error.strerror or error}") from None
