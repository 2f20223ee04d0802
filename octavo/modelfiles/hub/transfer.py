"""One file over HTTP: resumed where an earlier try stopped, checked against the digest the hub gave.

Called by snapshot.py. The partial file stays behind after an interruption, on purpose: the next run goes on from it.
The caller keeps one folder per version of a repository, so a partial file never belongs to other contents.
"""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Literal
from urllib.parse import urlsplit

from octavo.errors import DownloadError
from octavo.modelfiles.hub.progress import Progress

TIMEOUT = 30.0
"""Seconds without a byte before a try is given up."""
WAITS = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each new try; a try that brought bytes starts the list again."""
_CHUNK = 1 << 18
_AGAIN = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class RemoteFile:
    """One file of a listing. `digest`: of kind "sha256", or "git" (SHA-1 of a blob object), or "" when not told."""

    path: str
    url: str
    size: int
    kind: Literal["sha256", "git", ""] = ""
    digest: str = ""


class HttpError(Exception):
    """The hub answered, and not with the file: the status, for the source to put into words."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.body = body


class Unreachable(Exception):
    """No answer, or one that broke off again and again."""


class _KeepTokenHome(urllib.request.HTTPRedirectHandler):
    """Follows redirects as the parent does, but tells the token to no other host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if new is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            new.remove_header("Authorization")
        return new


def request(url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    """GET. Raises HttpError, Unreachable. The caller closes the answer."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise Unreachable(f"{url!r} is no web address")
    opener = urllib.request.build_opener(_KeepTokenHome)
    try:
        answer: http.client.HTTPResponse = opener.open(
            urllib.request.Request(url, headers=dict(headers)), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        with error:
            raise HttpError(error.code, error.read(2000).decode(errors="replace")) from None
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise Unreachable(str(getattr(error, "reason", error))) from error
    return answer


def download(
    file: RemoteFile,
    partial: Path,
    headers: Mapping[str, str],
    progress: Progress,
    look: Callable[[int], None] = lambda have: None,
) -> str:
    """Make `partial` the whole, checked file; its sha256 is returned. Advances `progress` by `file.size` in all. `look`
    is called with the number of bytes that are on the disk, again and again, and may end the download by an exception.

    Raises HttpError, Unreachable, DownloadError (contents are not what the hub promised), OSError (disk).
    """
    for last in (False, True):
        resumed = _fill(file, partial, headers, progress, look)
        sha256, good = _check(file, partial)
        if good:
            return sha256
        partial.unlink()
        if last or not resumed:  # a wrong beginning, left by an earlier run, deserves a second try; nothing else does
            break
        progress.advance(-file.size)
    raise DownloadError(f"{file.path}: the downloaded contents do not have the checksum the hub gives; try again")


def _fill(
    file: RemoteFile, partial: Path, headers: Mapping[str, str], progress: Progress, look: Callable[[int], None]
) -> bool:
    """Append until `file.size` bytes are there. Returns whether there was something to resume."""
    if not partial.exists():
        partial.touch()
    have = partial.stat().st_size
    if have > file.size:
        partial.write_bytes(b"")
        have = 0
    resumed = have > 0
    progress.advance(have)
    tries = 0
    while have < file.size or file.size == 0:
        before = have
        try:
            have = _stream(file, partial, have, headers, progress, look)
            if have == file.size:
                break
            failure: Exception = Unreachable("the connection broke off")
        except Unreachable as error:
            have, failure = partial.stat().st_size, error
        except HttpError as error:
            if error.status not in _AGAIN:
                raise
            failure = error
        tries = 1 if have > before else tries + 1
        if tries > len(WAITS):
            raise failure
        time.sleep(WAITS[tries - 1])
    return resumed


def _stream(
    file: RemoteFile,
    partial: Path,
    have: int,
    headers: Mapping[str, str],
    progress: Progress,
    look: Callable[[int], None],
) -> int:
    """One try: append what comes to the `have` bytes, return how many there are."""
    wish = {**headers, "Accept-Encoding": "identity"}
    if have:
        wish["Range"] = f"bytes={have}-"
    answer = request(file.url, wish)
    with answer, partial.open("r+b") as out:
        if have and not _continues(answer, have):  # the server sends it all again
            progress.advance(-have)
            have = 0
        out.truncate(have)
        out.seek(have)
        while True:
            try:
                chunk = answer.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise Unreachable(str(error)) from error
            if not chunk:
                return have
            have += len(chunk)
            if have > file.size:
                raise DownloadError(f"{file.path}: the hub sends more than the {file.size} bytes it listed; try again")
            out.write(chunk)
            out.flush()
            progress.advance(len(chunk))
            look(have)


def _continues(answer: http.client.HTTPResponse, have: int) -> bool:
    return answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")


def _check(file: RemoteFile, path: Path) -> tuple[str, bool]:
    """(sha256, whether the digest the hub gave agrees)."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as whole:
        while chunk := whole.read(1 << 20):
            sha256.update(chunk)
            if file.kind == "git":
                git.update(chunk)
    found = {"sha256": sha256.hexdigest(), "git": git.hexdigest(), "": file.digest}[file.kind]
    return sha256.hexdigest(), found == file.digest
