"""File names that are no text, and users without a home: what is carried, shown and said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo import env
from octavo.config.engine import EngineConfig, ServerConfig
from octavo.errors import ConfigError
from octavo.modelfiles.files import ModelFiles, locate
from octavo.modelfiles.hub import fetch
from octavo.supervisor.entry import EngineSpec, ServerSpec, decoded, encoded

NAMES = [b"plain", b"with space", "café".encode(), b"caf\xe9", b"100%41", b"new\nline", bytes(range(128, 256))]


@pytest.mark.parametrize("name", NAMES)
def test_every_path_has_an_address_that_leads_back(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.mkdir()
    (path / "config.json").write_text("{}")
    files = locate(path)
    assert files.name == name.decode(errors="replace")
    files.name.encode()
    files.address.encode("ascii")
    assert ModelFiles.at(files.address, files.name) == ModelFiles(files.name, path.resolve())


def test_usual_addresses_are_the_paths_themselves() -> None:
    path = Path("/srv/models/org--name/Model-Q4_K.gguf")
    assert ModelFiles("m", path).address == str(path)


def test_what_a_child_is_told_may_hold_any_path() -> None:
    engine = EngineSpec(
        parent=1,
        endpoint="ipc:///tmp/caf\udce9/engine",
        config=EngineConfig(model="caf\udce9.gguf", max_model_len=7),
        ready_fd=3,
        drain_timeout=1.5,
        log_level="info",
    )
    assert decoded(encoded(engine)) == engine
    server = ServerSpec(
        parent=1,
        endpoint="ipc:///x",
        config=ServerConfig(api_key=("é",), ssl_keyfile="\udcff"),
        ready_fd=3,
        listen_fds=(4, 5),
        model=("m", "/x"),
    )
    assert decoded(encoded(server)) == server


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No $HOME, and a user id that is in no passwd file."""
    for name in ("HOME", "XDG_CACHE_HOME", "OCTAVO_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_uid: int) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("model", ["smollm2-135m", "org/name"])
def test_a_user_without_a_home_is_told_what_to_name(model: str) -> None:
    with pytest.raises(ConfigError, match=r"has no home .*OCTAVO_CACHE"):
        fetch(EngineConfig(model=model))


@pytest.mark.usefixtures("nobody")
def test_a_user_without_a_home_may_name_a_folder_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert fetch(EngineConfig(model=str(tmp_path))).path == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert env.cache_dir() == Path("/x/octavo")
    monkeypatch.setenv("OCTAVO_CACHE", "/y")
    assert env.cache_dir() == Path("/y")


def test_the_home_of_an_unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="~nobodyhere"):
        fetch(EngineConfig(model="~nobodyhere/x.gguf"))
    monkeypatch.setenv("OCTAVO_CACHE", "~nobodyhere/x")
    with pytest.raises(ConfigError, match="OCTAVO_CACHE=~nobodyhere/x"):
        env.cache_dir()
    monkeypatch.setenv("MODELSCOPE_CACHE", "~nobodyhere/x")
    with pytest.raises(ConfigError, match="MODELSCOPE_CACHE"):
        env.modelscope_cache()
