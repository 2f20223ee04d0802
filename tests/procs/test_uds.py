"""`octavo serve --uds`: HTTP over a Unix socket, through a restart of the server to an end that leaves nothing."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from patience import PATIENCE_S
from served import OPTIONS, Octavo, wait_until
from tiny import write_tiny_model


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, route: str, body: Any = None) -> tuple[int, str]:
    """→ (status, text); status 0 where nobody answers."""
    connection = UnixConnection(path)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, route, content, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def test_http_over_a_unix_socket(tmp_path: Path) -> None:
    model, path = write_tiny_model(tmp_path / "tiny"), tmp_path / "octavo.sock"
    octavo = Octavo(tmp_path, "serve", str(model), "--uds", str(path), "--uds-mode", "660", *OPTIONS)
    body = {"prompt": "abc", "max_tokens": 3, "temperature": 0}
    try:
        wait_until(lambda: octavo.process.poll() is not None or ask(path, "GET", "/ready")[0] == 200, "a start")
        assert octavo.process.poll() is None, octavo.output
        assert path.stat().st_mode & 0o777 == 0o660 and f"unix:{path}" in octavo.output
        status, first = ask(path, "POST", "/v1/completions", body)
        assert status == 200 and json.loads(first)["usage"]["completion_tokens"] == 3
        assert ask(path, "POST", "/v1/completions", {**body, "stream": True})[1].endswith("data: [DONE]\n\n")
        server = octavo.child("octavo-server")
        server.kill()
        wait_until(lambda: octavo.child("octavo-server").pid != server.pid, "a new server")
        wait_until(lambda: ask(path, "GET", "/ready")[0] == 200, "the new server")
        assert json.loads(ask(path, "POST", "/v1/completions", body)[1])["choices"] == json.loads(first)["choices"]
        wait_until(lambda: octavo.output.count("from unix") >= 3, "the access lines")
        octavo.signal(15)
        assert octavo.ended() == 0 and not path.exists()
    finally:
        octavo.close()
