"""The error tree: every failure a user can meet has one class here, one HTTP answer and one exit line.

    OctavoError
    ├── ConfigError            a flag, environment name, config key or value is wrong     exit 2
    ├── ModelFileError         a model file is corrupt, truncated or inconsistent         exit 3
    ├── DownloadError          a model could not be fetched                               exit 4
    ├── OutOfMemory            weights or KV pages do not fit                             exit 5
    ├── DeviceLost             the GPU can do no more work for this process               exit 6
    └── ApiError               ends a request; carries its HTTP status
        ├── RequestError       400: the request is wrong; `param` names the field
        │   ├── ContextLengthExceeded
        │   └── Unsupported    400: a known field that is not served yet
        ├── ModelNotFound      404
        ├── QueueFull          429, Retry-After
        ├── Unavailable        503, Retry-After: loading, draining, restarting
        └── EngineError        500: the engine failed while the request was in flight

Messages say what went wrong, with which value, and what to do. They hold no traceback, path of
the serving machine or address once they reach an HTTP client. What a program asks of an error is not in its message but
beside it: its code, its place in the request and its facts.
"""

from __future__ import annotations


class Place(tuple[str | int, ...]):
    """Where in the body of a request: keys and indices, from the outside in. `str` spells it: messages[3].content."""

    __slots__ = ()

    def __new__(cls, *keys: str | int) -> Place:
        return super().__new__(cls, keys)

    def __truediv__(self, key: str | int) -> Place:
        return Place(*self, key)

    def __str__(self) -> str:
        parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in self]
        return "".join(parts).removeprefix(".")


Field = Place | str
"""A place, or the name of a field at the top."""


class OctavoError(Exception):
    """Base of all errors a user may see. `exit_code` is what the command line exits with."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigError(OctavoError):
    """A flag, environment variable, config-file key or their combination is not valid."""

    exit_code = 2


class ModelFileError(OctavoError):
    """A model file is corrupt or not what it claims; the message names the file and the tensor or key."""

    exit_code = 3

    def __init__(self, file: str, message: str) -> None:
        super().__init__(f"{file}: {message}")
        self.file = file


class DownloadError(OctavoError):
    """A model could not be found or fetched."""

    exit_code = 4


class OutOfMemory(OctavoError):
    """The weights or one full sequence of KV pages do not fit; the message says what to change."""

    exit_code = 5


class DeviceLost(OctavoError):
    """A CUDA error after which nothing works any more: the engine process ends, and a new one goes on."""

    exit_code = 6


class ApiError(OctavoError):
    """Ends one request. Maps to one HTTP answer: `status` and `{"error": {message, type, param, code}}`.

    `place`: the field that is wrong. A message that begins with it is a sentence about it, and names the new field when
    a face that calls it otherwise moves the error there. `facts`: the numbers that the message tells, by name."""

    status = 500
    type = "server_error"
    default_code: str | None = None

    def __init_subclass__(cls, *, status: int | None = None, type: str | None = None, code: str | None = None) -> None:
        """What is not given is as of the class above."""
        cls.status = cls.status if status is None else status
        cls.type = cls.type if type is None else type
        cls.default_code = cls.default_code if code is None else code

    def __init__(
        self,
        message: str,
        *,
        param: Field | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        facts: dict[str, int] | None = None,
    ) -> None:
        self.place = Place(param) if isinstance(param, str) else param
        self._rest: str | None = None
        """What the sentence says of the place."""
        super().__init__(message)
        self.code = code if code is not None else self.default_code
        self.retry_after = retry_after
        self.facts = facts or {}

    @property
    def message(self) -> str:
        return self._message if self._rest is None else f"{self.place}{self._rest}"

    @message.setter
    def message(self, message: str) -> None:
        subject = str(self.place or "")
        rest = message[len(subject) :]
        is_about = subject and message.startswith(subject) and rest[:1] in " :"
        self._message, self._rest = message, rest if is_about else None

    @property
    def param(self) -> str | None:
        """The place, spelled."""
        return None if self.place is None else str(self.place)

    def __str__(self) -> str:
        return self.message


class RequestError(ApiError, status=400, type="invalid_request_error"):
    """The request is wrong; `param` names the field."""

    @classmethod
    def about(cls, field: Field, said: str, *, code: str | None = None) -> RequestError:
        """The sentence whose subject is the field: that it `said`, "must be a text"."""
        return cls(f"{field} {said}", param=field, code=code)


class ContextLengthExceeded(RequestError, code="context_length_exceeded"):
    """The prompt does not fit the model's context."""


class Unsupported(RequestError, code="unsupported_parameter"):
    """A field that is known but not served yet; `param` names it."""


class ModelNotFound(ApiError, status=404, type="invalid_request_error", code="model_not_found"):
    """No model of this name is served."""


class QueueFull(ApiError, status=429, type="rate_limit_error", code="queue_full"):
    """More would wait than may."""


class Unavailable(ApiError, status=503, type="unavailable_error", code="unavailable"):
    """Not now: the model is loading, or the server is about to end."""


class EngineError(ApiError, code="engine_error"):
    """The engine failed while the request was in flight."""


class ClientGone(ApiError, status=499, code="client_gone"):
    """The client left or stopped reading; nobody sees this answer, the log shows its status."""


_BY_CODE: dict[str, type[ApiError]] = {
    cls.default_code: cls
    for cls in (ContextLengthExceeded, Unsupported, ModelNotFound, QueueFull, Unavailable, EngineError)
    if cls.default_code is not None
}


def error_from_wire(code: str, message: str, param: str | None) -> ApiError:
    """Rebuild the error that the engine sent as `Failed(id, code, message, param)`."""
    cls = _BY_CODE.get(code, RequestError)
    retry_after = 1 if cls in (QueueFull, Unavailable) else None
    return cls(message, param=param, code=code, retry_after=retry_after)
