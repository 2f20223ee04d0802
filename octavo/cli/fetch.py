"""Finds or fetches MODEL for a command, showing progress on standard error."""

from __future__ import annotations

from octavo.config.engine import EngineConfig
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.hub import fetch
from octavo.modelfiles.hub.progress import console_progress


def fetch_with_progress(config: EngineConfig, *, refresh: bool = False, as_log: bool = False) -> ModelFiles:
    """The files of `config.model`, fetched when they are not here yet; `refresh` asks a hub for a newer version.

    Raises DownloadError, ModelFileError.
    """
    return fetch(config, console_progress(as_log=as_log), refresh=refresh)
