"""The title of a supervisor's process, which `ps` and `octavo ps` show: its name, where it serves, and what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

NAME = "octavo-supervisor"


class Title(NamedTuple):
    address: str
    """As a browser takes it."""
    model: str


def set_title(address: str, model: str) -> None:
    import setproctitle

    title = f"{NAME} {address} {model}"  # a path may hold bytes that are no text
    setproctitle.setproctitle(title.encode(errors="surrogateescape").decode(errors="replace"))


def read_title(command: Sequence[str]) -> Title | None:
    """Of a process's command line, when it is a supervisor that serves."""
    name, _, rest = (command[0] if command else "").partition(" ")
    address, _, model = rest.partition(" ")
    return Title(address, model) if name == NAME and address else None
