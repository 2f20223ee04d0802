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
the serving machine or address once they reach an HTTP client.
"""

from __future__ import annotations


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
    """Ends one request. Maps to one HTTP answer: `status` and `{"error": {message, type, param, code}}`."""

    status = 500
    type = "server_error"
    default_code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code if code is not None else self.default_code
        self.retry_after = retry_after


class RequestError(ApiError):
    """The request is wrong; `param` names the field."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(RequestError):
    """The prompt does not fit the model's context."""

    default_code = "context_length_exceeded"


class Unsupported(RequestError):
    """A field that is known but not served yet; `param` names it."""

    default_code = "unsupported_parameter"


class ModelNotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    default_code = "model_not_found"


class QueueFull(ApiError):
    status = 429
    type = "rate_limit_error"
    default_code = "queue_full"


class Unavailable(ApiError):
    status = 503
    type = "unavailable_error"
    default_code = "unavailable"


class EngineError(ApiError):
    default_code = "engine_error"


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
