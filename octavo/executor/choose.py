"""Which executor runs the plans of an engine: the one place that knows. Called by engine/process.py and
client/local.py."""

from __future__ import annotations

from octavo.config.resolve import ResolvedConfig
from octavo.executor.base import Executor
from octavo.executor.inline import InlineExecutor
from octavo.executor.overlapped import OverlappedExecutor
from octavo.modelfiles.files import ModelFiles


def make(resolved: ResolvedConfig, files: ModelFiles) -> Executor:
    """Not started yet."""
    if resolved.device == "cpu":
        return InlineExecutor(resolved, files)
    return OverlappedExecutor(resolved, files, depth=2 if resolved.async_scheduling else 1)
