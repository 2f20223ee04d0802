"""`octavo list` and `octavo rm`: the models in the cache."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from octavo import env
from octavo.cli.processes import running
from octavo.cli.table import table
from octavo.config.suggest import did_you_mean
from octavo.errors import ConfigError
from octavo.modelfiles.hub.inventory import Cached, inventory, remove
from octavo.modelfiles.hub.progress import megabytes


def _row(model: Cached) -> dict[str, object]:
    return {
        "name": model.name,
        "source": model.source,
        "bytes": model.num_bytes,
        "modified": int(model.modified),
        "complete": model.is_complete,
        "folder": str(model.folder),
    }


def run_list(*, as_json: bool) -> None:
    """Print the models by name."""
    models = inventory()
    if as_json:
        print(msgspec.json.encode([_row(model) for model in models]).decode())
    elif not models:
        print(f"no models in {env.cache_dir()}; `octavo pull NAME` fetches one")
    else:
        print(table(("NAME", "SIZE", "FROM", "FETCHED", ""), [_cells(model) for model in models]))


def _cells(model: Cached) -> tuple[str, ...]:
    state = "" if model.is_complete else "incomplete"
    return model.name, megabytes(model.num_bytes), model.source, _day(model.modified), state


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def run_remove(name: str, *, force: bool) -> None:
    """Remove one model. Raises ConfigError for a name that is not there, or served; DownloadError."""
    models = {model.name: model for model in inventory()}
    if name not in models:
        if Path(name).expanduser().exists():
            raise ConfigError(f"{name} is a file or folder of yours, not in the cache; remove it as any other")
        known = did_you_mean(name, models) or "; `octavo list` lists those that are"
        raise ConfigError(f"no model {name!r} in the cache{known}")
    server = next((server for server in running() if server.model == name), None)
    if server is not None and not force:
        raise ConfigError(f"{name} is served by process {server.pid}; end that first, or give --force")
    remove(models[name])
    print(f"removed {name}: {megabytes(models[name].num_bytes)}")
