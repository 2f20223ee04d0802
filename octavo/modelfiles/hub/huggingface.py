"""The Hugging Face Hub. Its own library lists files, holds the token and knows its cache; it is imported only when the
hub has to be asked. The bytes come through transfer.py, which resumes across runs. When the hub cannot be asked (no
network, HF_HUB_OFFLINE), a complete copy in the library's cache is used.
"""

from __future__ import annotations

from pathlib import Path

from octavo import env
from octavo.errors import DownloadError
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.hub import caches
from octavo.modelfiles.hub.progress import Progress
from octavo.modelfiles.hub.snapshot import Listing, Wish, fetch_snapshot
from octavo.modelfiles.hub.transfer import HttpError, RemoteFile, Unreachable

_TIMEOUT = 15.0


def fetch(wish: Wish, progress: Progress) -> ModelFiles:
    """Raises DownloadError."""
    return fetch_snapshot(
        "huggingface", wish, lambda: _look_up(wish, progress), lambda error: _explain(wish, error), progress
    )


def _look_up(wish: Wish, progress: Progress) -> Listing:
    import httpx2
    from huggingface_hub import HfApi, errors, get_token, hf_hub_url, try_to_load_from_cache

    endpoint = env.huggingface_endpoint()
    repo = wish.repo
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, revision=wish.revision, files_metadata=True, timeout=_TIMEOUT)
    except errors.GatedRepoError as error:
        raise _gated(repo) from error
    except errors.RepositoryNotFoundError as error:
        raise _not_found(repo) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repo}: has no revision {wish.revision!r} on the Hugging Face Hub") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        failure = _explain(wish, HttpError(status, ""))
        if status < 500:
            raise failure from error
        return _from_cache(wish, failure, progress)
    except (httpx2.HTTPError, OSError) as error:  # also when HF_HUB_OFFLINE is set
        return _from_cache(wish, _offline(repo, error), progress)
    commit = info.sha or ""
    files = []
    for entry in info.siblings or []:
        if entry.size is None:
            continue
        url = hf_hub_url(repo, entry.rfilename, revision=commit, endpoint=endpoint)
        if entry.lfs is not None:
            files.append(RemoteFile(entry.rfilename, url, entry.size, "sha256", entry.lfs.sha256))
        elif entry.blob_id is not None:
            files.append(RemoteFile(entry.rfilename, url, entry.size, "git", entry.blob_id))
        else:
            files.append(RemoteFile(entry.rfilename, url, entry.size))

    def cached(path: str) -> Path | None:
        found = try_to_load_from_cache(repo, path, revision=commit)
        return Path(found) if isinstance(found, str) else None

    token = get_token()
    headers = {"User-Agent": "octavo"} | ({"Authorization": f"Bearer {token}"} if token else {})
    return Listing(commit, tuple(files), headers, cached)


def _from_cache(wish: Wish, failure: DownloadError, progress: Progress) -> Listing:
    """The copy in the library's own cache. Raises `failure`, with what is missing there, when it is of no use."""
    from huggingface_hub import constants

    if wish.refresh:
        raise failure
    try:
        listing = caches.huggingface(wish, Path(constants.HF_HUB_CACHE))
    except DownloadError as error:
        raise DownloadError(f"{failure.message}; nor is it here: {error.message}") from None
    progress.note(f"{wish.repo}: the Hugging Face Hub is not asked; using the copy in {constants.HF_HUB_CACHE}")
    return listing


def _gated(repo: str) -> DownloadError:
    return DownloadError(
        f"{repo}: is gated; accept its terms on its page of the Hugging Face Hub and set HF_TOKEN to your token"
    )


def _not_found(repo: str) -> DownloadError:
    return DownloadError(
        f"{repo}: no such model on the Hugging Face Hub, or a private one; check the name or set HF_TOKEN"
    )


def _offline(repo: str, error: Exception) -> DownloadError:
    return DownloadError(
        f"{repo}: the Hugging Face Hub ({env.huggingface_endpoint()}) cannot be reached ({str(error)[:200]}); "
        "connect and try again, or give MODEL as a .gguf file or a folder you have"
    )


def _explain(wish: Wish, error: HttpError | Unreachable) -> DownloadError:
    if isinstance(error, Unreachable):
        return _offline(wish.repo, error)
    if error.status in (401, 403):
        return _gated(wish.repo)
    if error.status == 404:
        return _not_found(wish.repo)
    return DownloadError(f"{wish.repo}: the Hugging Face Hub answers HTTP {error.status}; try again later")
