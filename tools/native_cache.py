"""Native kernels that were built on this machine before, so that another clone of the same sources does not build them
again. `native_cache.py take` puts them into the checkout and exits with 0; `keep` stores what was built there; `forget`
drops what turned out not to work.

Called by tools/setup with the Python of .venv; nothing is installed for it. An entry is found by all that decides what
a compiler makes of the sources, and carries a checksum of itself: a file that was changed or cut off is not used.
Where there is no home, or no place to write, there is no cache and nothing fails.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ENTRIES = 8
"""So many are kept, the last used."""
FLAGS = ("CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CMAKE_ARGS", "SKBUILD_CMAKE_ARGS", "SKBUILD_CMAKE_DEFINE")
PLACE = "octavo/kernels/cpu"


def cache_folder() -> Path | None:
    """None where there is none."""
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and os.environ["HOME"] + "/.cache")
    return Path(home, "octavo", "native") if home and Path(home).is_absolute() else None


def key(checkout: Path) -> str:
    """Of the sources, the compiler, Python, the machine and the flags."""
    digest = hashlib.sha256()

    def add(*parts: bytes | str) -> None:
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "little") + data)

    sources = sorted(path for path in (checkout / "csrc").rglob("*") if path.is_file())
    for path in (*sources, checkout / "requirements-build.txt"):
        add(path.relative_to(checkout).as_posix(), path.read_bytes())
    add(how_to_build((checkout / "pyproject.toml").read_text()))
    compiler = subprocess.run([os.environ.get("CXX", "c++"), "--version"], capture_output=True, check=True).stdout
    add(compiler, sys.version, sysconfig.get_platform(), str(sysconfig.get_config_var("EXT_SUFFIX")))
    add(platform.machine(), *platform.libc_ver(), *(f"{name}={os.environ.get(name, '')}" for name in FLAGS))
    return digest.hexdigest()


def how_to_build(pyproject: str) -> str:
    """The tables that say how the module is built, by line: a new dependency or rule of style compiles nothing anew."""
    kept, wanted = [], False
    for line in pyproject.splitlines():
        if line.startswith("["):
            wanted = line.lstrip("[").startswith(("build-system]", "tool.scikit-build]", "tool.scikit-build."))
        if wanted:
            kept.append(line)
    return "\n".join(kept)


def take(checkout: Path, entry: Path) -> bool:
    """Whether the module is now in the checkout."""
    try:
        (module,) = entry.glob("_native*.so")
        if entry.stat().st_uid != os.getuid() or module.stat().st_uid != os.getuid():
            return False
        data = module.read_bytes()
        if hashlib.sha256(data).hexdigest() != (entry / "sha256").read_text().strip():
            forget(entry)
            return False
        os.utime(entry)
        (checkout / PLACE / module.name).write_bytes(data)
    except (OSError, ValueError):
        return False
    return True


def keep(checkout: Path, entry: Path) -> None:
    """Store the checkout's module; complete or not at all."""
    (module,) = (checkout / PLACE).glob("_native*.so")
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".making-", dir=entry.parent))
    try:
        data = module.read_bytes()
        (made / module.name).write_bytes(data)
        (made / "sha256").write_text(hashlib.sha256(data).hexdigest())
        forget(entry)
        made.rename(entry)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    entries = sorted(entry.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in entries[ENTRIES:]:
        forget(old)


def forget(entry: Path) -> None:
    shutil.rmtree(entry, ignore_errors=True)


def main(command: str, checkout: Path) -> int:
    folder = cache_folder()
    if folder is None:
        return 1
    try:
        entry = folder / key(checkout)
        if command == "take":
            return 0 if take(checkout, entry) else 1
        keep(checkout, entry) if command == "keep" else forget(entry)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path.cwd()))
