"""Names that the shell can complete: of models. Quick, since it runs at every press of the Tab key."""

from __future__ import annotations


def models(incomplete: str) -> list[str]:
    """Demo models, models in the cache, and files and folders as the shell would complete them."""
    from octavo.modelfiles.hub.demos import DEMOS

    known = [*DEMOS, *cached("")]
    return sorted({*(name for name in known if name.startswith(incomplete)), *_paths(incomplete)})


def cached(incomplete: str) -> list[str]:
    """Models in the cache."""
    from octavo.modelfiles.hub.inventory import inventory

    return [model.name for model in inventory() if model.name.startswith(incomplete)]


def _paths(incomplete: str) -> list[str]:
    """.gguf files and folders that begin so."""
    from pathlib import Path

    folder, _, begun = incomplete.rpartition("/")
    base = Path(f"{folder}/" if incomplete.count("/") else ".").expanduser()
    try:
        entries = sorted(entry for entry in base.iterdir() if entry.name.startswith(begun) and entry.name[0] != ".")
        found = [(entry.name, entry.is_dir()) for entry in entries if entry.is_dir() or entry.suffix == ".gguf"]
    except OSError:
        return []
    prefix = f"{folder}/" if "/" in incomplete else ""
    return [f"{prefix}{name}/" if is_folder else f"{prefix}{name}" for name, is_folder in found]
