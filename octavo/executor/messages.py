"""What passes between an executor and a worker in a process of its own: each message a frame of msgpack.

An order is one of four things. Only `start` and `collect` are answered, each by one answer.
"""

from __future__ import annotations

import msgspec

from octavo.config.resolve import ResolvedConfig
from octavo.errors import ConfigError, DeviceLost, DownloadError, ModelFileError, OctavoError, OutOfMemory
from octavo.executor.base import StepFailed
from octavo.rank import Rank
from octavo.wire.plan import Masks, Plan, Result, WorkerInfo


class Start(msgspec.Struct, frozen=True):
    """Before anything else. `address`, `name`: of the model's files; `parent`: whom the process must not outlive."""

    resolved: ResolvedConfig
    address: str
    name: str
    depth: int
    rank: Rank
    parent: int


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    start: Start | None = None
    plan: Plan | None = None
    masks: Masks | None = None
    collect: bool = False
    """The result of the oldest plan in flight is wanted."""


class Failure(msgspec.Struct, frozen=True):
    """An exception on its way: the name of its class, what it says, and the model file it speaks of."""

    kind: str
    message: str
    file: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        kind = next((name for name, known in _KINDS.items() if isinstance(error, known)), OctavoError.__name__)
        if isinstance(error, ModelFileError):
            return cls(kind, error.message.removeprefix(f"{error.file}: "), error.file)
        says_what = isinstance(error, OctavoError | StepFailed)
        return cls(kind, str(error) if says_what else f"{type(error).__name__}: {error}")

    def error(self) -> Exception:
        if self.file is not None:
            return ModelFileError(self.file, self.message)
        return _KINDS.get(self.kind, OctavoError)(self.message)


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    info: WorkerInfo | None = None
    result: Result | None = None
    failure: Failure | None = None


_KINDS: dict[str, type[Exception]] = {
    known.__name__: known for known in (ConfigError, DownloadError, OutOfMemory, DeviceLost, StepFailed)
} | {ModelFileError.__name__: ModelFileError}
"""Those with a message alone; the last needs its file."""
