"""ModelScope by its plain HTTP API: list a model's files, fetch them through transfer.py. When it cannot be reached, a
complete copy in the cache of its own library is used."""

from __future__ import annotations

import hashlib
from urllib.parse import quote, urlencode

import msgspec

from octavo import env
from octavo.errors import DownloadError
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.hub import caches
from octavo.modelfiles.hub.progress import Progress
from octavo.modelfiles.hub.snapshot import Listing, Wish, fetch_snapshot
from octavo.modelfiles.hub.transfer import HttpError, RemoteFile, Unreachable, request

_LONGEST_LISTING = 16 << 20


class _Entry(msgspec.Struct, rename="pascal"):
    path: str
    type: str = "blob"
    size: int = 0
    sha256: str = ""


class _Data(msgspec.Struct, rename="pascal"):
    files: list[_Entry] | None = None


class _Answer(msgspec.Struct, rename="pascal"):
    code: int = 200
    message: str = ""
    data: _Data | None = None


def fetch(wish: Wish, progress: Progress) -> ModelFiles:
    """Raises DownloadError."""

    def look_up() -> Listing:
        try:
            return _look_up(wish)
        except (HttpError, Unreachable) as error:
            failure = _explain(wish, error)
            if wish.refresh or (isinstance(error, HttpError) and error.status < 500):
                raise failure from error
            try:
                listing = caches.modelscope(wish)
            except DownloadError as missing:
                raise DownloadError(f"{failure.message}; nor is it here: {missing.message}") from None
        progress.note(f"{wish.repo}: ModelScope is not asked; using the copy in {env.modelscope_cache()}")
        return listing

    return fetch_snapshot("modelscope", wish, look_up, lambda error: _explain(wish, error), progress)


def _look_up(wish: Wish) -> Listing:
    """Raises HttpError, Unreachable; DownloadError where ModelScope itself says no."""
    base = f"{env.modelscope_endpoint()}/api/v1/models/{quote(wish.repo)}/repo"
    revision = wish.revision or "master"
    headers = {"User-Agent": "octavo"}
    if token := env.modelscope_token():
        headers["Authorization"] = f"Bearer {token}"
    try:
        with request(f"{base}/files?" + urlencode({"Revision": revision, "Recursive": "true"}), headers) as answer:
            body = answer.read(_LONGEST_LISTING)
        listing = msgspec.json.decode(body, type=_Answer)
    except (OSError, msgspec.DecodeError) as error:
        raise Unreachable(str(error)) from error
    if listing.code != 200 or listing.data is None:
        raise DownloadError(f"{wish.repo}: ModelScope refuses ({listing.code}): {listing.message[:200]}")
    files = tuple(
        RemoteFile(
            entry.path,
            f"{base}?" + urlencode({"Revision": revision, "FilePath": entry.path}),
            entry.size,
            "sha256" if entry.sha256 else "",
            entry.sha256,
        )
        for entry in listing.data.files or []
        if entry.type == "blob"
    )
    # ModelScope names no commit for a whole listing: the contents name the version.
    contents = sorted((file.path, file.size, file.digest) for file in files)
    version = hashlib.sha256(msgspec.json.encode(contents)).hexdigest()[:40]
    return Listing(version, files, headers)


def _explain(wish: Wish, error: HttpError | Unreachable) -> DownloadError:
    repo = wish.repo
    if isinstance(error, Unreachable):
        return DownloadError(
            f"{repo}: ModelScope ({env.modelscope_endpoint()}) cannot be reached ({str(error)[:200]}); "
            "connect and try again, or give MODEL as a .gguf file or a folder you have"
        )
    if error.status in (401, 403):
        return DownloadError(f"{repo}: ModelScope wants a login; set MODELSCOPE_API_TOKEN to your token")
    if error.status == 404:
        at = f" with revision {wish.revision!r}" if wish.revision else ""
        return DownloadError(f"{repo}: no such model{at} on ModelScope; check the name")
    return DownloadError(f"{repo}: ModelScope answers HTTP {error.status}; try again later")
