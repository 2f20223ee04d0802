"""`octavo` as real processes, watched from outside: by HTTP, by signals, by the process table."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from patience import PATIENCE_S

OPTIONS = ["--dtype", "float32", "--threads", "1", "--kv-cache-memory", "8MiB", "--max-num-seqs", "8"]
SMALL = [
    *("--dtype", "float32", "--threads", "1", "--max-num-seqs", "8", "--max-queued-requests", "8"),
    *("--max-model-len", "1024", "--kv-cache-memory", "1200KiB"),
]
"""150 pages of 16 tokens: two and a half of the longest sequences, for eight rows."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.02)
    return value


class Octavo:
    """One `octavo` command. Its whole output goes to `log`. `through`: a command that is given this one and becomes
    it."""

    def __init__(self, folder: Path, *args: str, through: Sequence[str] = (), **env: str) -> None:
        self.log = folder / f"octavo-{time.monotonic_ns()}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*through, sys.executable, "-m", "octavo", *args],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            )
        self.ps = psutil.Process(self.process.pid)
        self._seen: dict[int, psutil.Process] = {}

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def started(self) -> Octavo:
        """Waits until it serves."""

        def ready() -> bool:
            assert self.process.poll() is None, self.output
            return self.port is not None and self.get("/ready")[0] == 200

        wait_until(ready, f"a start\n{self.output}")
        self.children()
        return self

    @property
    def port(self) -> int | None:
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.output)
        return int(found[1]) if found else None

    def children(self) -> dict[str, psutil.Process]:
        """Living children by their titles."""
        found = {}
        for child in self.ps.children(recursive=True):
            try:
                title = child.cmdline()[:1]
            except psutil.Error:
                continue
            self._seen[child.pid] = child
            if title:
                found[title[0].split()[0]] = child
        return found

    def child(self, title: str) -> psutil.Process:
        return wait_until(lambda: self.children().get(title), title)

    def get(self, path: str) -> tuple[int, Any]:
        """→ (status, JSON); status 0 when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except OSError:
            return 0, None
        finally:
            connection.close()

    def running(self) -> int:
        return int(self.get("/v1/metrics")[1]["queue"]["running"])

    def stream(self, num_tokens: int, **fields: Any) -> Stream:
        return Stream(self.port or 0, num_tokens, fields)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = PATIENCE_S) -> int:
        """Waits for the end; → exit code. Nothing may be left of it."""
        self.process.wait(seconds)
        code = self.process.returncode
        self.gone()
        return code

    def gone(self, seconds: float = PATIENCE_S) -> None:
        """Every child that was ever seen ends."""
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=seconds)
        assert not alive, f"orphans: {alive}"

    def close(self) -> None:
        if self.process.poll() is None:
            self.children()
            self.process.kill()
            self.process.wait()
        self.gone()


class Stream:
    """One streamed completion, read by a thread of its own."""

    def __init__(self, port: int, num_tokens: int, fields: dict[str, Any]) -> None:
        self.pieces: list[str] = []
        self.error: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        self.done = False
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        request = {"prompt": "abc", "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        self._body = json.dumps({**request, **fields})
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def result(self, seconds: float = PATIENCE_S) -> str:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the stream does not end"
        return self.text

    def leave(self) -> None:
        """Hang up."""
        sock = self._connection.sock
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)

    def begun(self, pieces: int = 3) -> Stream:
        wait_until(lambda: len(self.pieces) >= pieces or self.done, "a stream's first pieces")
        return self

    def _read(self) -> None:
        try:
            self._connection.request("POST", "/v1/completions", self._body, {"Content-Type": "application/json"})
            with self._connection.getresponse() as response:
                if response.status != 200:
                    self.error = json.loads(response.read())["error"]
                    return
                for line in response:
                    if line.startswith(b"data: {"):
                        self._take(json.loads(line[6:]))
        except (OSError, http.client.HTTPException):
            pass
        finally:
            self._connection.close()
            self.done = True

    def _take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self.error = chunk["error"]
            return
        for choice in chunk["choices"]:
            if choice["text"]:
                self.pieces.append(choice["text"])
            self.finish_reason = choice["finish_reason"] or self.finish_reason


__all__ = ["OPTIONS", "SMALL", "Octavo", "Stream", "signal", "wait_until"]
