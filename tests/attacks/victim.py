"""A server process to be attacked, whose engine is the fake one; and raw bytes on its socket."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import psutil
from patience import PATIENCE_S

from octavo.config import ServerConfig

MIB = 1 << 20
_CODE = """
import asyncio, sys, socket, time
from starlette.responses import JSONResponse
sys.path[:] = {path!r}
import msgspec
from octavo import log
from octavo.client.fake import FakeClient
from octavo.config import ServerConfig
from octavo.server.app import create_app
from octavo.server.http import middleware
from octavo.server.process import DrainingServer
from octavo.server.routes import SITE
middleware.LINGER_S = 0.5
log.setup("server", "info")
config = msgspec.json.decode({config!r}, type=ServerConfig)
config = msgspec.structs.replace(config, allowed_hosts=("x", *config.allowed_hosts))
app = create_app(FakeClient(**{fake!r}), config, SITE)
worst, metering = [0.0], []
async def meter():
    while True:
        began = time.process_time()
        await asyncio.sleep(0.002)
        worst[0] = max(worst[0], time.process_time() - began)
async def lag(request):
    if not metering:
        metering.append(asyncio.create_task(meter()))
    found, worst[0] = worst[0], 0.0
    return JSONResponse(found)
app.add_route("/lag", lag)
server = DrainingServer(app, config)
server.run(sockets=[socket.socket(fileno={fd})])
"""


class Victim:
    """One server process."""

    def __init__(self, config: ServerConfig, is_traced: bool = True, **fake: Any) -> None:
        """`is_traced`: coverage may follow it; processor time that is measured is to be its own."""
        env = {name: value for name, value in os.environ.items() if is_traced or not name.startswith("COVERAGE_")}
        self.is_tls = config.ssl_certfile is not None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `close`)
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            self.port = int(listener.getsockname()[1])
            code = _CODE.format(path=sys.path, config=msgspec.json.encode(config), fake=fake, fd=listener.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=(listener.fileno(),),
                stderr=self._log,
                env={**env, "OMP_NUM_THREADS": "1"},
            )
        self.ps = psutil.Process(self.process.pid)

    def started(self) -> Victim:
        self.wait_for(lambda: self.ask("GET", "/health")[0] == 200, "a start")
        self.ask("POST", "/v1/completions", {"prompt": "warm", "max_tokens": 4})
        return self

    @property
    def output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    @property
    def rss(self) -> int:
        return int(self.ps.memory_info().rss)

    def lag(self) -> float:
        """Seconds of processor time between two turns of the event loop, the most since it was last asked."""
        return float(json.loads(self.ask("GET", "/lag")[2]))

    def connect(self, timeout: float = 20.0) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.is_tls:
            context = ssl._create_unverified_context()  # the certificate is made by the test
            return context.wrap_socket(sock)
        return sock

    def send(self, data: bytes, timeout: float = 20.0) -> bytes:
        """All that comes back until the server closes the connection."""
        with self.connect(timeout) as sock:
            with suppress(OSError):  # it has closed on us; what it said may still be read
                sock.sendall(data)
            return read_all(sock)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> tuple[int, dict[str, str], bytes]:
        """→ (status, headers, body); status 0 when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        if self.is_tls:
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE_S, context=context)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, content, {"content-type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        except OSError:
            return 0, {}, b""
        finally:
            connection.close()

    def processor_time(self) -> float:
        """Seconds that the process has computed: what a busy machine does not change."""
        used = self.ps.cpu_times()
        return float(used.user + used.system)

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, f"waited {seconds} s in vain for {what}\n{self.output}"
            time.sleep(0.02)

    def unharmed(self, num_fds: int | None = None) -> None:
        """It lives, answers the known text, and holds nothing that it did not hold before."""
        status, _, body = self.ask("POST", "/v1/completions", {"prompt": "abc", "max_tokens": 6, "temperature": 0})
        assert status == 200 and json.loads(body)["choices"][0]["text"] == "Hello!", (status, body)
        if num_fds is not None:
            self.wait_for(lambda: self.ps.num_fds() <= num_fds + 1, "descriptors to be closed")
        assert "Traceback" not in self.output

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self._log.close()


@contextmanager
def victim(config: ServerConfig | None = None, **fake: Any) -> Iterator[Victim]:
    found = Victim(config or ServerConfig(drain_timeout=1), **fake)
    try:
        yield found.started()
    finally:
        found.close()


def read_all(sock: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := sock.recv(1 << 16):
            received += chunk
    except TimeoutError:
        raise AssertionError(f"the server keeps the connection open after {received[:200]!r}") from None
    except OSError:
        pass  # reset
    return received


def read_one(sock: socket.socket) -> bytes:
    """The next answer, as far as its Content-Length says."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = sock.recv(1 << 16)
        assert chunk, received
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head.lower())
    while found is not None and len(body) < int(found[1]):
        body += sock.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def status_of(answer: bytes) -> int:
    """Of the one answer that these bytes are."""
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    return int(answer[9:12])


def statuses_of(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def error_of(answer: bytes, status: int) -> dict[str, Any]:
    """The error body of a refusal, its form checked."""
    assert status_of(answer) == status, answer[:500]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head.lower()
    if b"transfer-encoding: chunked" in head.lower():
        body = body.split(b"\r\n")[1]
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def trickle(sock: socket.socket, piece: bytes) -> None:
    """Sends it again and again, slowly, until the server closes the connection."""
    end = time.monotonic() + PATIENCE_S
    with suppress(OSError):
        while time.monotonic() < end:
            sock.sendall(piece)
            time.sleep(0.02)
        raise AssertionError("the server takes what trickles in without end")


class Pulse:
    """Asks for /health again and again meanwhile; `worst` is the longest that an answer took: how long the event loop
    was busy with something else."""

    def __init__(self, server: Victim) -> None:
        self.worst = 0.0
        self.count = 0
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._server.connect() as sock:
            while not self._over.is_set():
                started = self._server.processor_time()
                sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}"):
                    answer += sock.recv(4096)
                self.worst = max(self.worst, self._server.processor_time() - started)
                self.count += 1
                time.sleep(0.001)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Growth:
    """By how much the process's memory grew at most meanwhile."""

    def __init__(self, server: Victim) -> None:
        self._server = server
        self._over = threading.Event()
        self._base = self._peak = server.rss
        self._thread = threading.Thread(target=self._run)

    @property
    def bytes(self) -> int:
        return self._peak - self._base

    def _run(self) -> None:
        while not self._over.wait(0.01):
            self._peak = max(self._peak, self._server.rss)

    def __enter__(self) -> Growth:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
