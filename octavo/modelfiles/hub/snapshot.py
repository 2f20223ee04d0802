"""A model of a hub in our cache: models/<source>/<org>/<name>/<version>/…, with a record of what was chosen.

Called by the two hub sources, which only list files and put failures into words. A model that is here complete is used
without asking the hub, so starting needs no network; `refresh` (`octavo pull`) asks for a newer version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from octavo.errors import DownloadError, ModelFileError
from octavo.modelfiles.config_facts import config_facts
from octavo.modelfiles.files import ModelFiles, locate
from octavo.modelfiles.gguf import IncompleteError, read_beginning
from octavo.modelfiles.gguf_facts import gguf_facts
from octavo.modelfiles.hub import choose, store
from octavo.modelfiles.hub.progress import Progress, running
from octavo.modelfiles.hub.transfer import HttpError, RemoteFile, Unreachable, download
from octavo.modelfiles.jsonfile import read_object
from octavo.modelfiles.loadable import check_header

_RECORD = ".octavo-record.json"
_CONFIG = "config.json"
FIRST_LOOK_BYTES = 1 << 20
"""How much of a .gguf file is here before its header is looked at; it has up to some 20 MB, most of it vocabulary."""


@dataclass(frozen=True)
class Listing:
    """What a hub has of one revision. `version` names its contents and becomes a folder's name."""

    version: str
    files: tuple[RemoteFile, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    cached: Callable[[str], Path | None] = lambda path: None
    """Where the hub's own library has a file already."""


class Choice(msgspec.Struct, frozen=True):
    """What one (revision, gguf file) stood for when it was last looked up."""

    version: str
    files: list[str]


@dataclass(frozen=True)
class Wish:
    """What the user asked a hub for."""

    repo: str
    revision: str | None
    gguf_file: str | None
    refresh: bool = False

    @property
    def key(self) -> str:
        return f"{self.revision or ''}|{self.gguf_file or ''}"


def fetch_snapshot(
    source: str,
    wish: Wish,
    look_up: Callable[[], Listing],
    explain: Callable[[HttpError | Unreachable], DownloadError],
    progress: Progress,
) -> ModelFiles:
    """The chosen files, all of them on the disk. `explain` words a failed transfer for the user."""
    home = store.model_dir(source, *wish.repo.split("/"))
    if not wish.refresh and (here := _complete(home, wish)) is not None:
        return here
    with store.holding(home, wish.repo, progress):
        if not wish.refresh and (here := _complete(home, wish)) is not None:
            return here  # the process we waited for fetched it
        listing = look_up()
        names = choose.wanted([file.path for file in listing.files], wish.gguf_file, wish.repo)
        chosen = [file for file in listing.files if file.path in set(names)]
        folder = store.model_dir(source, *wish.repo.split("/"), listing.version)
        try:
            _fetch_files(folder, listing, chosen, wish.repo, progress)
        except (HttpError, Unreachable) as error:
            raise explain(error) from error
        _write_record(home, wish, Choice(listing.version, names))
    return _files(folder, wish)


def _fetch_files(folder: Path, listing: Listing, chosen: list[RemoteFile], label: str, progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in chosen if not _is_here(folder, file)]
    partials = {file.path: _partial(folder, file) for file in missing}
    have = sum(partial.stat().st_size for partial in partials.values() if partial.exists())
    total = sum(file.size for file in missing)
    store.check_space(folder, label, total - have)
    if not missing:
        return
    with running(progress, label, total):
        for file in sorted(missing, key=lambda file: (_is_weights(file.path), file.path != _CONFIG)):
            if _is_weights(file.path):
                _check_before_weights(folder, [known.path for known in chosen], label)
            target, partial = folder / file.path, partials[file.path]
            target.parent.mkdir(parents=True, exist_ok=True)
            if (cached := listing.cached(file.path)) is not None and cached.stat().st_size == file.size:
                partial.unlink(missing_ok=True)
                partial.symlink_to(cached.resolve())
            sha256 = download(file, partial, listing.headers, progress, _first_look(file, partial))
            store.adopt(partial, target, sha256, root=folder)


def _is_weights(path: str) -> bool:
    return path.endswith((".safetensors", ".gguf"))


def _check_before_weights(folder: Path, names: list[str], label: str) -> None:
    """What cannot be served is known before its weights are fetched. Raises ModelFileError."""
    if _CONFIG in names:
        config_facts(read_object(folder / _CONFIG), _CONFIG)
        if "tokenizer.json" not in names:
            hint = "; convert its tokenizer.model first" if "tokenizer.model" in names else ""
            raise ModelFileError(label, f"the repository has no tokenizer.json{hint}")


def _first_look(file: RemoteFile, partial: Path) -> Callable[[int], None]:
    """Judges a .gguf file by its header as soon as that is here, long before the weights are."""
    wanted: int | None = FIRST_LOOK_BYTES if file.path.endswith(".gguf") else None

    def look(have: int) -> None:
        nonlocal wanted
        if wanted is None or have < min(wanted, file.size):
            return
        try:
            header = read_beginning(partial, file.size, file.path)
            gguf_facts(header, file.path)
            check_header(header, file.path)
            wanted = None
        except IncompleteError:
            wanted = 2 * have
        except ModelFileError:
            partial.unlink()
            raise

    return look


def _partial(folder: Path, file: RemoteFile) -> Path:
    return folder / (".partial-" + file.path.replace("/", "--"))


def _is_here(folder: Path, file: RemoteFile) -> bool:
    return store.is_intact(folder / file.path, store.read_stamps(folder).get(file.path))


def complete(source: str, wish: Wish) -> ModelFiles | None:
    """What was wished for, when all of it is here."""
    return _complete(store.model_dir(source, *wish.repo.split("/")), wish)


def _complete(home: Path, wish: Wish) -> ModelFiles | None:
    """What the record promises, when every file of it is still as it was."""
    choice = _read_record(home).get(wish.key)
    if choice is None:
        return None
    folder = home / choice.version
    stamps = store.read_stamps(folder)
    if not all(store.is_intact(folder / name, stamps.get(name)) for name in choice.files):
        return None
    return _files(folder, wish)


def _files(folder: Path, wish: Wish) -> ModelFiles:
    return locate(folder / wish.gguf_file if wish.gguf_file else folder, wish.repo)


def _read_record(home: Path) -> dict[str, Choice]:
    try:
        return msgspec.json.decode((home / _RECORD).read_bytes(), type=dict[str, Choice])
    except (OSError, msgspec.DecodeError):
        return {}


def _write_record(home: Path, wish: Wish, choice: Choice) -> None:
    draft = home / (_RECORD + ".new")
    draft.write_bytes(msgspec.json.encode(_read_record(home) | {wish.key: choice}))
    draft.replace(home / _RECORD)
