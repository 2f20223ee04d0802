"""One request over a socket of its own, streamed or not, that may be left at any moment. Used by actions.py."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 400.0


@dataclass
class Answer:
    """What came. `status` 0: no answer, the connection was refused or broke."""

    path: str
    started: float = field(default_factory=time.monotonic)
    first: float = 0.0
    """When the first token of a stream came."""
    ended: float = 0.0
    status: int = 0
    body: Any = None
    text: str = ""
    error: dict[str, Any] | None = None
    finish_reason: str | None = None
    complete: bool = False
    """Everything came, to the last byte."""
    left: bool = False

    @property
    def code(self) -> str:
        """Of the error, or what else became of it."""
        if self.error is not None:
            return str(self.error.get("code") or self.error.get("type"))
        return "ok" if self.complete else "left" if self.left else "broken"


def post(port: int, path: str, body: Any, *, leave_after: float | None = None, method: str = "POST") -> Answer:
    """`leave_after`: seconds after which the client hangs up."""
    answer = Answer(path)
    timeout = TIMEOUT_S if leave_after is None else max(leave_after, 0.001)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer.status = response.status
        if response.headers.get_content_type() == "text/event-stream":
            _read_stream(answer, response, leave_after)
        else:
            _read_whole(answer, response)
    except (OSError, http.client.HTTPException) as error:
        answer.text = answer.text or repr(error)
        answer.left = leave_after is not None and time.monotonic() - answer.started >= leave_after
    finally:
        connection.close()
        answer.ended = time.monotonic()
    return answer


def _read_whole(answer: Answer, response: http.client.HTTPResponse) -> None:
    data = response.read()
    answer.complete = True
    try:
        answer.body = json.loads(data)
    except ValueError:
        answer.body = data.decode(errors="replace")
        return
    if answer.status >= 400 and isinstance(answer.body, dict):
        answer.error = answer.body.get("error")
    elif isinstance(answer.body, dict) and answer.body.get("choices"):
        choice = answer.body["choices"][0]
        answer.finish_reason = choice["finish_reason"]
        answer.text = choice["text"] if "text" in choice else choice["message"]["content"] or ""


def _read_stream(answer: Answer, response: http.client.HTTPResponse, leave_after: float | None) -> None:
    for line in response:
        if leave_after is not None and time.monotonic() - answer.started > leave_after:
            answer.left = True
            return
        if line.startswith(b"data: [DONE]"):
            answer.complete = True
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        answer.first = answer.first or time.monotonic()
        if event.get("error"):
            answer.error = event["error"]
        elif event.get("type") in ("message_stop", "response.completed", "response.incomplete"):
            answer.complete = True
        for choice in event.get("choices") or ():
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            if choice.get("index", 0) == 0:
                answer.text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
