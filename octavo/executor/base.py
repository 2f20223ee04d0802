"""What runs plans. The engine loop submits plans, collects results in order; how many may be in flight is `depth`."""

from __future__ import annotations

from typing import Protocol

from octavo.wire.plan import Masks, Plan, Result, WorkerInfo


class StepFailed(Exception):
    """A plan raised in the worker: its requests fail, the rows it touched must be released, the worker goes on."""


class Executor(Protocol):
    depth: int
    """Plans that may be in flight: 1, or 2 to overlap host and device, or more for a pipeline."""

    def start(self) -> WorkerInfo:
        """Load the model, profile, size the KV cache; blocks until ready. Raises OctavoError."""
        ...

    def submit(self, plan: Plan, masks: Masks | None = None) -> None:
        """`masks`: given when a run that samples belongs to a row that was admitted as constrained."""
        ...

    def collect(self) -> Result:
        """The result of the oldest plan in flight; blocks. Raises StepFailed."""
        ...

    def shutdown(self) -> None: ...
