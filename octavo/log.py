"""Logging of every Octavo process: one line a record on standard error, with time, level and the process's role."""

from __future__ import annotations

import logging
import sys

_FORMAT = "%(asctime)s %(levelname)-7s {role}: %(message)s"


def setup(role: str, level: str = "info") -> None:
    """Route all records of this process to standard error. `role`: supervisor, server, engine, …; `level`: a name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT.format(role=role), datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("octavo").setLevel(level.upper())
