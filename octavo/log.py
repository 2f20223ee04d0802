"""Logging of every Octavo process: one record a line on standard error, as text for people or as JSON for machines.

`setup` is called first thing by each process; loggers are Python's own. A record may carry fields (`about`) and, while
a server handles a request, its id. Invariant: whatever a record holds (a client's id, an exception's text), nothing in
it can begin a line of its own or reach a terminal as a control character.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from contextvars import ContextVar
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Literal, TextIO

Format = Literal["text", "json"]

REQUEST_ID: ContextVar[str] = ContextVar("octavo_request_id", default="")
"""The HTTP request being handled, for records that name none."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_IN_BLOCK = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def setup(role: str, level: str = "info", form: Format = "text", stream: TextIO | None = None) -> None:
    """Route all records of this process to standard error. `role`: supervisor, server, engine, …; `level`: a name."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(role) if form == "json" else TextFormatter(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("octavo").setLevel(level.upper())
    if form == "json":  # nothing else may write lines that are none
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def about(request_id: str = "", **fields: Any) -> dict[str, Any]:
    """What a record is about, for `logger.info(…, extra=about(…))`. Fields are keys of a JSON line; text does not show
    them, so the message must say what matters."""
    return {"request_id": request_id, "fields": fields}


def last_words(message: str) -> None:
    """The one line of an error that ends the process, in the form of its other lines."""
    if _is_json():
        logging.getLogger("octavo").critical("%s", message)
    else:
        print(f"octavo: error: {_escaped(message)}", file=sys.stderr, flush=True)


def note(message: str) -> None:
    """A line for whoever gave a command, before it does anything."""
    if _is_json():
        logging.getLogger("octavo").warning("%s", message)
    else:
        print(f"octavo: {_escaped(message)}", file=sys.stderr, flush=True)


def _is_json() -> bool:
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


class TextFormatter(logging.Formatter):
    """`12:00:00 INFO    server: what happened [request id]`; a traceback follows, every line of it set in."""

    def __init__(self, role: str) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        request_id = _request_id(record)
        message = record.getMessage().rstrip("\n") + (f" [{request_id}]" if request_id else "")
        line = f"{self.formatTime(record, self.datefmt)} {record.levelname:<7} {self._role}: {_escaped(message)}"
        for block in filter(None, (_exception(record), record.stack_info, _fields(record).get("stacks"))):
            text = _CONTROL_IN_BLOCK.sub(_escape, str(block)).rstrip("\n")
            line += "\n" + "\n".join("    " + part for part in text.split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """An object a line: timestamp (UTC), level, logger, process, pid, message; request_id, fields, exception if any."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._role,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if request_id := _request_id(record):
            line["request_id"] = request_id
        for name, value in _fields(record).items():
            line.setdefault(name, value)
        if exception := _exception(record):
            line["exception"] = exception
        # ASCII only: no separator of lines that somebody's reader knows, no half of a surrogate pair
        return json.dumps(line, separators=(",", ":"), default=str)


def _request_id(record: logging.LogRecord) -> str:
    return getattr(record, "request_id", "") or REQUEST_ID.get()


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}  # a library's own records may mean something else by it


def _exception(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    return "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")


def _escaped(text: str) -> str:
    return _CONTROL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None and issubclass(kind, Exception):
        logging.getLogger("octavo").critical("uncaught: %s", kind.__name__, exc_info=(kind, error, trace))
