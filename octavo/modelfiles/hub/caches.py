"""What the hubs' own libraries have on this machine, as a listing: for when a hub cannot be asked.

Reads only; files stay where they are and are linked from there. Invariant: a listing holds every file that is in the
snapshot, so choosing from it fails where the snapshot is not complete.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from octavo import env
from octavo.errors import DownloadError
from octavo.modelfiles.hub import choose
from octavo.modelfiles.hub.snapshot import Listing, Wish
from octavo.modelfiles.hub.transfer import RemoteFile

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def huggingface(wish: Wish, cache: Path) -> Listing:
    """The snapshot that refs/REVISION (main) names, or REVISION itself when it is a commit. `cache`: HF_HUB_CACHE.
    Raises DownloadError that says what is missing."""
    home = cache / ("models--" + wish.repo.replace("/", "--"))
    revision = wish.revision or "main"
    try:
        commit = (home / "refs" / revision).read_text().strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    snapshot = home / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        raise DownloadError(f"{wish.repo}: {cache} has no copy of it at revision {revision!r}")
    return _listing(wish, snapshot, commit)


def modelscope(wish: Wish) -> Listing:
    """The snapshot of the revision (master), or one in the folders of older versions of its library, which kept one
    revision only. Raises DownloadError that says what is missing."""
    owner, _, name = wish.repo.partition("/")
    cache, masked = env.modelscope_cache(), name.replace(".", "___")
    snapshots = cache / "models" / f"{owner}--{name}" / "snapshots"
    places = [snapshots / (wish.revision or "master")]
    if wish.revision is None:
        places += [root / owner / part for root in _roots(cache) for part in (masked, name)]
    for place in places:
        if place.is_dir():
            return _listing(wish, place, None)
    raise DownloadError(f"{wish.repo}: {cache} has no copy of it")


def _roots(cache: Path) -> Iterable[Path]:
    return (cache / "models", cache / "hub" / "models", cache, cache / "hub")


def _listing(wish: Wish, snapshot: Path, commit: str | None) -> Listing:
    """`commit`: None where the contents name the version. Raises DownloadError when what `wish` needs is not there."""
    files = tuple(
        _file(snapshot, path) for path in sorted(snapshot.rglob("*")) if path.is_file() and path.stat().st_size
    )
    names = [file.path for file in files]
    choose.wanted(names, wish.gguf_file, f"{wish.repo} in {snapshot}")
    if missing := choose.missing_shards(snapshot) if wish.gguf_file is None else []:
        raise DownloadError(f"{wish.repo}: {snapshot} lacks {', '.join(missing[:3])}")
    if commit is None:
        contents = [(file.path, file.size, (snapshot / file.path).stat().st_mtime_ns) for file in files]
        commit = hashlib.sha256(msgspec.json.encode(contents)).hexdigest()[:40]
    return Listing(commit, files, cached=lambda path: snapshot / path)


def _file(snapshot: Path, path: Path) -> RemoteFile:
    """Its digest is the name of the blob that it links to, where there is one."""
    name, blob = path.relative_to(snapshot).as_posix(), path.resolve().name
    size = path.stat().st_size
    if path.is_symlink() and _SHA256.fullmatch(blob):
        return RemoteFile(name, "", size, "sha256", blob)
    if path.is_symlink() and _COMMIT.fullmatch(blob):
        return RemoteFile(name, "", size, "git", blob)
    return RemoteFile(name, "", size)
