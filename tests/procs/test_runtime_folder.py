"""The folder in which processes meet: private, marked, restored when cleaned away; nothing else is ever removed."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo.processes import folder as module
from octavo.processes.folder import MARK, PREFIX, RuntimeFolder

FILES = ("engine", "engine.crash")


@pytest.fixture
def where() -> Iterator[Path]:
    """With a short name, as a socket's path must be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def _old(path: Path) -> None:
    os.utime(path, (1, 1))


def _left_behind(where: Path, name: str, *more: str) -> Path:
    """As a killed process leaves it."""
    made = RuntimeFolder(FILES, [where])
    os.close(made._lock)
    path = made.path.rename(where / f"{PREFIX}{name}")
    for file in more:
        (path / file).touch()
    _old(path)
    return path


def test_what_killed_processes_left_is_removed_and_nothing_else(where: Path) -> None:
    stale = _left_behind(where, "stale", *FILES)
    kept = _left_behind(where, "kept", "engine", "letters")
    unmarked = _left_behind(where, "unmarked")
    (unmarked / MARK).write_text("my own lock")
    open_to_all = _left_behind(where, "open")
    open_to_all.chmod(0o755)
    elsewhere = _left_behind(where, "linked").rename(where / "elsewhere")
    (where / f"{PREFIX}linked").symlink_to(elsewhere)
    older = where / "octavo-notes"  # a user's own
    older.mkdir()
    (older / "lock").touch()
    for path in (kept, unmarked, open_to_all, elsewhere, older):
        _old(path)
    with RuntimeFolder(FILES, [where]) as living:
        _old(living.path)
        with RuntimeFolder(FILES, [where]):
            assert living.path.exists()
    assert not stale.exists() and not living.path.exists()
    assert [path.name for path in kept.iterdir()] == ["letters"]
    assert (unmarked / MARK).exists() and (open_to_all / MARK).exists() and (elsewhere / MARK).exists()
    assert (older / "lock").exists()


def test_young_folders_are_left(where: Path) -> None:
    young = _left_behind(where, "young")
    os.utime(young)
    with RuntimeFolder(FILES, [where]):
        assert young.exists()


def test_a_folder_that_was_cleaned_away_is_made_again(where: Path) -> None:
    with RuntimeFolder(FILES, [where]) as made:
        module._remove(made.path, FILES)
        assert not made.path.exists()
        made.restore()
        assert stat.S_IMODE(made.path.stat().st_mode) == 0o700 and (made.path / MARK).exists()
        (made.path / MARK).unlink()
        made.restore()
        _old(made.path)
        with RuntimeFolder(FILES, [where]):
            assert made.path.exists(), "its lock is held as before"
    assert not made.path.exists()


def test_a_folder_that_another_has_taken_is_not_used(where: Path) -> None:
    with RuntimeFolder(FILES, [where]) as made:
        module._remove(made.path, FILES)
        made.path.mkdir(0o777)
        made.path.chmod(0o777)
        with pytest.raises(ConfigError, match="another user has taken"):
            made.restore()
        made.path.rmdir()
        made.path.symlink_to(where)
        with pytest.raises(ConfigError, match="another user has taken"):
            made.restore()
        made.path.unlink()


def test_the_first_place_that_can_be_written(where: Path) -> None:
    file = where / "file"
    file.touch()
    deep = where / ("x" * 90)
    deep.mkdir()
    good = where / "good"
    good.mkdir()
    with RuntimeFolder(FILES, [where / "none", file, deep, good]) as made:
        assert made.path.parent == good
    with pytest.raises(ConfigError, match="TMPDIR"):
        RuntimeFolder(FILES, [where / "none", file, deep])


def test_places_when_none_of_the_usual_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/77")
    assert module._places() == [Path("/tmp"), Path("/run/user/77"), Path("/dev/shm")]
