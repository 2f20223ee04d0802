"""Started as launchers, containers and scripts do start it: signals ignored or blocked, descriptors closed, no home, no
temporary folder, names that are no text; and what happens while it runs to the folder its processes meet in."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paced import PacedEngine, model_folder
from served import OPTIONS, Octavo, wait_until
from tiny import write_tiny_model

from octavo.wire.endpoint import private_endpoint

LAUNCHER = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})
gone = os.path.join(sys.argv.pop(1), "gone")
os.mkdir(gone)
os.chdir(gone)
os.rmdir(gone)
os.close(0)
os.close(1)
for name in ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
    os.environ.pop(name, None)
os.execv(sys.argv[1], sys.argv[1:])
"""
ENVIRONMENT = {
    "LC_ALL": "POSIX",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "TMPDIR": "/nonexistent",
    "OCTAVO_PORT": "tcp://10.96.12.7:8000",
    "OCTAVO_PORT_8000_TCP": "tcp://10.96.12.7:8000",
    "OCTAVO_SERVICE_HOST": "10.96.12.7",
}


def ask(octavo: Octavo, **fields: Any) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", octavo.port, timeout=60)
    try:
        body = {"prompt": "abc", "max_tokens": 4, "temperature": 0, **fields}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except OSError:
        return 0, None
    finally:
        connection.close()


def meeting_folder(octavo: Octavo) -> Path:
    return Path(re.findall(r"ipc://(\S+)/engine", octavo.output)[-1])


def test_every_odd_circumstance_at_once(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "plain").rename(tmp_path / os.fsdecode("café-".encode() + b"\xe9"))
    octavo = Octavo(
        tmp_path,
        "serve",
        str(model),
        "--port",
        "0",
        *OPTIONS,
        through=[sys.executable, "-c", LAUNCHER, str(tmp_path)],
        **ENVIRONMENT,
    )
    try:
        octavo.started()
        assert "OCTAVO_PORT=tcp://10.96.12.7:8000 is left alone" in octavo.output
        assert octavo.get("/v1/models")[1]["data"][0]["id"] == "café-\ufffd"
        wait_until(lambda: "ready after" in octavo.output.split("supervisor: ")[-1], "the supervisor's word")
        octavo.signal(signal.SIGHUP)
        assert ask(octavo)[0] == 200
        status, answer = ask(octavo, structured_outputs={"regex": "[ab]{3}"}, max_tokens=8)
        assert status == 200 and re.fullmatch("[ab]{3}", answer["choices"][0]["text"])

        folder = meeting_folder(octavo)
        shutil.rmtree(folder)
        octavo.child("octavo-engine").kill()
        wait_until(lambda: ask(octavo)[0] == 200, "another engine")
        assert folder.stat().st_mode & 0o777 == 0o700

        shutil.rmtree(folder)
        server = octavo.child("octavo-server")
        server.kill()
        wait_until(lambda: octavo.child("octavo-server").pid != server.pid, "another server")
        wait_until(lambda: ask(octavo)[0] == 200, "the same engine, at the same place")
        assert octavo.process.poll() is None, octavo.output
        octavo.signal(signal.SIGTERM)
        assert octavo.ended(60) == 0
        assert not folder.exists() and "Traceback" not in octavo.output, octavo.output
    finally:
        octavo.close()


def test_a_server_without_an_engine_says_that_it_waits(tmp_path: Path) -> None:
    with private_endpoint() as endpoint:
        octavo = Octavo(tmp_path, "serve", "--connect", endpoint, "--port", "0")
        try:
            wait_until(lambda: octavo.port is not None and octavo.get("/health")[0] == 200, "the server")
            assert (
                f"waiting for an engine at {endpoint}" in octavo.output
                and "ready" not in octavo.output.split("answers")[1]
            )
            assert octavo.get("/ready")[0] == 503
            engine = PacedEngine(endpoint, model_folder(tmp_path))
            try:
                wait_until(lambda: "ready after" in octavo.output, "ready")
                assert octavo.get("/ready")[0] == 200
            finally:
                engine.kill()
        finally:
            octavo.close()


@pytest.mark.parametrize("closed", [fds for count in range(4) for fds in itertools.combinations(range(3), count)])
def test_standard_descriptors_that_are_closed_are_opened(closed: tuple[int, ...]) -> None:
    code = f"""
import os, sys
for fd in {closed}:  # and Python makes no streams of what is closed when it starts
    os.close(fd)
    setattr(sys, ("stdin", "stdout", "stderr")[fd], None)
from octavo.processes.descriptors import open_standard
open_standard()
read, write = os.pipe()
right = min(read, write) > 2 and all(os.get_inheritable(fd) for fd in range(3))
print("out", flush=True), print("err", file=sys.stderr, flush=True), sys.stdin.read()
os._exit(0 if right else 1)
"""
    done = subprocess.run([sys.executable, "-c", code], input=b"", capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout == (b"" if 1 in closed else b"out\n") and done.stderr == (b"" if 2 in closed else b"err\n")


def test_an_interrupt_while_it_imports_ends_it_without_a_word() -> None:
    code = """
import os, signal, sys
from octavo.__main__ import main
class Interrupted:
    def find_spec(self, name, *_):
        if name == "octavo.cli.app":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupted())
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
