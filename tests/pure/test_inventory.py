"""The models in the cache as `octavo list`, `show` and `rm` see them."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from octavo.cli import cached, names
from octavo.cli.processes import Server
from octavo.config.engine import EngineConfig
from octavo.errors import ConfigError, DownloadError
from octavo.modelfiles.hub import store
from octavo.modelfiles.hub.fetch import find
from octavo.modelfiles.hub.inventory import inventory, remove


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo model, a hub's, one that has only begun, and what belongs to nobody."""
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))
    models = tmp_path / "models"
    for folder, file, size in (
        (models / "smollm2-135m", "m.gguf", 1000),
        (models / "huggingface" / "org" / "name" / "abc", "model.safetensors", 2000),
    ):
        folder.mkdir(parents=True)
        (folder / file).write_bytes(b"x" * size)
        store.stamp(folder, file, store.Stamp("0", size, (folder / file).stat().st_mtime_ns))
    begun = models / "modelscope" / "org" / "begun" / "def"
    begun.mkdir(parents=True)
    (begun / ".partial-model.safetensors").write_bytes(b"x" * 30)
    (models / "somebody" / "elses").mkdir(parents=True)
    (tmp_path / "chat-history").write_text("")
    return tmp_path


def test_inventory(cache: Path) -> None:
    found = {model.name: model for model in inventory()}
    assert list(found) == ["org/begun", "org/name", "smollm2-135m"]
    assert [model.source for model in found.values()] == ["modelscope", "huggingface", "demo"]
    assert [model.is_complete for model in found.values()] == [False, True, True]
    assert found["org/name"].num_bytes >= 2000 and found["org/begun"].num_bytes == 30
    assert names.cached("org/") == ["org/begun", "org/name"]


def test_list_as_table_and_json(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cached.run_list(as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "FROM", "FETCHED"] and len(lines) == 4
    assert lines[1].startswith("org/begun") and lines[1].endswith("incomplete")
    cached.run_list(as_json=True)
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["org/begun", "org/name", "smollm2-135m"]


def test_remove(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "running", list)
    cached.run_remove("org/name", force=False)
    assert not (cache / "models" / "huggingface" / "org").exists() and (cache / "models" / "huggingface").exists()
    with pytest.raises(ConfigError, match=r"no model 'org/nam' in the cache; `octavo list`|did you mean"):
        cached.run_remove("org/nam", force=False)
    assert [model.name for model in inventory()] == ["org/begun", "smollm2-135m"]


def test_what_is_served_or_being_fetched_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "running", lambda: [Server(7, "smollm2-135m", "http://127.0.0.1:1", 5)])
    with pytest.raises(ConfigError, match="is served by process 7; end that first, or give --force"):
        cached.run_remove("smollm2-135m", force=False)
    found = {model.name: model for model in inventory()}
    with (found["org/begun"].folder / store.LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is fetching it"):
            remove(found["org/begun"])
    assert found["org/begun"].folder.exists()
    cached.run_remove("smollm2-135m", force=True)
    assert "smollm2-135m" not in {model.name for model in inventory()}


def test_a_file_of_the_users_is_not_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "running", list)
    mine = cache / "mine.gguf"
    mine.write_text("x")
    with pytest.raises(ConfigError, match="is a file or folder of yours"):
        cached.run_remove(str(mine), force=True)
    assert mine.exists()


def test_find_asks_nobody(cache: Path) -> None:
    assert find(EngineConfig(model="org/name")) is None  # nothing says which of its files are wanted
    assert find(EngineConfig(model="no/such")) is None
    assert find(EngineConfig(model="gemma3-270m")) is None
    assert find(EngineConfig(model="nonsense")) is None


def test_paths_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    for name in ("models/a.gguf", "models/b.txt", "moon.gguf"):
        (tmp_path / name).write_text("")
    assert names.models("mo") == ["models/", "moon.gguf"]
    assert names.models("models/") == ["models/a.gguf"]
    assert names.models("") == ["gemma3-270m", "models/", "moon.gguf", "smollm2-135m"]
    assert names.models("/no/such/") == []
