"""MODEL → files on this machine. Called once at start by the supervisor, the engine, the offline engine and `pull`.

In this order: a demo name, a path that exists, a hub id. A model that is here already costs a few `stat` calls.
"""

from __future__ import annotations

import re
from pathlib import Path

from octavo.config.engine import EngineConfig
from octavo.config.suggest import did_you_mean
from octavo.env import expanded
from octavo.errors import ConfigError, DownloadError
from octavo.modelfiles.files import ModelFiles, locate
from octavo.modelfiles.hub import huggingface, modelscope
from octavo.modelfiles.hub.demos import DEMOS
from octavo.modelfiles.hub.packages import fetch_demo, find_demo
from octavo.modelfiles.hub.progress import Progress, console_progress
from octavo.modelfiles.hub.snapshot import Wish, complete

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def fetch(config: EngineConfig, progress: Progress | None = None, *, refresh: bool = False) -> ModelFiles:
    """The files of `config.model`, fetched when they are not here yet.

    `progress`: None shows a bar on a terminal and plain lines elsewhere, on standard error. `refresh`: ask the hub for
    a newer version although the model is here (for `octavo pull`; demo models and local paths never change).
    Raises DownloadError (nothing fetched), ModelFileError (a local path that is no model), ConfigError (options that
    contradict each other).
    """
    progress = progress or console_progress()
    model = config.model
    if model in DEMOS:
        _only_for_hubs(config, f"the demo model {model}")
        return fetch_demo(DEMOS[model], progress)
    path = expanded(model, f"MODEL {model}")
    if path.exists():
        return _local(path, config)
    if not _HUB_ID.fullmatch(model):
        raise DownloadError(
            f"{model!r} is no file or folder here, no demo model ({', '.join(DEMOS)}) and no hub id (org/name)"
            + did_you_mean(model, (*DEMOS, *_neighbours(path)))
        )
    wish = Wish(model, config.revision, config.gguf_file, refresh)
    if config.source == "modelscope":
        return modelscope.fetch(wish, progress)
    return huggingface.fetch(wish, progress)


def find(config: EngineConfig) -> ModelFiles | None:
    """The files of `config.model` when all of them are here; asks nobody and fetches nothing. Raises as `fetch` does
    for a local path."""
    model, path = config.model, Path(config.model).expanduser()
    if model in DEMOS:
        return find_demo(DEMOS[model])
    if path.exists():
        return _local(path, config)
    return complete(config.source, Wish(model, config.revision, config.gguf_file)) if _HUB_ID.fullmatch(model) else None


def _neighbours(path: Path) -> list[str]:
    """What lies where a path was looked for, as the user would write it."""
    try:
        return [str(path.parent / entry.name) for entry in path.parent.iterdir()]
    except OSError:
        return []


def _local(path: Path, config: EngineConfig) -> ModelFiles:
    if config.gguf_file is None or not path.is_dir():
        _only_for_hubs(config, f"the local path {path}")
        return locate(path)
    named = path / config.gguf_file
    if not named.resolve().is_relative_to(path.resolve()) or not named.is_file():
        there = ", ".join(sorted(found.name for found in path.glob("*.gguf"))) or "no .gguf file"
        raise ConfigError(f"--gguf-file {config.gguf_file}: not in {path}; there: {there}")
    return locate(named)


def _only_for_hubs(config: EngineConfig, what: str) -> None:
    for option, value in (("--gguf-file", config.gguf_file), ("--revision", config.revision)):
        if value is not None:
            raise ConfigError(f"{option} {value}: is for models of a hub, and MODEL is {what}; leave it out")
