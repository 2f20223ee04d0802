"""Which executor runs the plans of an engine: the one place that knows."""

from __future__ import annotations

from octavo.config.resolve import ResolvedConfig
from octavo.executor.base import Executor
from octavo.executor.inline import InlineExecutor
from octavo.modelfiles.files import ModelFiles


def make(resolved: ResolvedConfig, files: ModelFiles) -> Executor:
    """Not started yet."""
    overlaps = resolved.device != "cpu" and resolved.async_scheduling
    return InlineExecutor(resolved, files, depth=2 if overlaps else 1)
