"""What runs plans. Plans are submitted and their results collected in order; how many may be in flight is `depth`."""

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

    def submit(self, plan: Plan) -> None:
        """Gives the plan's work. If it is masked, `masks` follows before anything else is asked."""
        ...

    def masks(self, masks: Masks) -> None:
        """Of the plan submitted last, whose model may have been computed meanwhile."""
        ...

    def collect(self) -> Result:
        """The result of the oldest plan in flight; blocks. Raises StepFailed."""
        ...

    def shutdown(self) -> None: ...
