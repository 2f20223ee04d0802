"""`octavo ps`: the servers of this user that run on this machine.

The list of processes is the register: a supervisor's title says where it serves what, so nothing goes stale when one is
killed. Whether the model answers is asked over HTTP.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import msgspec
import psutil

from octavo.cli.table import table
from octavo.supervisor.title import read_title

ANSWER_S = 2.0


@dataclass(frozen=True)
class Server:
    """One `octavo serve`."""

    pid: int
    model: str
    """As it was named at the start; ipc://PATH of an engine that runs elsewhere."""
    address: str
    uptime: int
    """Seconds."""
    state: str = ""


def running() -> list[Server]:
    """The oldest first, their states not asked yet."""
    return sorted(_found(), key=lambda server: -server.uptime)


def _found() -> Iterator[Server]:
    for process in psutil.process_iter():
        try:
            titled = read_title(process.cmdline()[:1])
            if titled is None or process.uids().real != os.getuid():
                continue
            yield Server(process.pid, titled.model, titled.address, int(time.time() - process.create_time()))
        except psutil.Error:  # ended meanwhile, or somebody else's
            continue


def state(address: str) -> str:
    """ready, loading, draining or no answer."""
    import httpx2

    try:
        # The certificate is for other names than this address, and nothing secret is sent.
        answer = httpx2.get(f"{address}/ready", timeout=ANSWER_S, verify=False, trust_env=False)
    except (httpx2.HTTPError, OSError):
        return "no answer"
    if answer.status_code == 200:
        return "ready"
    try:
        return str(answer.json().get("status", "")) or f"HTTP {answer.status_code}"
    except (ValueError, AttributeError):
        return f"HTTP {answer.status_code}"


def run_ps(*, as_json: bool) -> None:
    """Print the servers with their states."""
    servers = [Server(s.pid, s.model, s.address, s.uptime, state(s.address)) for s in running()]
    if as_json:
        print(msgspec.json.encode([asdict(server) for server in servers]).decode())
    elif not servers:
        print("no server of yours runs on this machine; `octavo serve` starts one")
    else:
        rows = [(str(s.pid), s.model, s.address, uptime(s.uptime), s.state) for s in servers]
        print(table(("PID", "MODEL", "ADDRESS", "UPTIME", "STATE"), rows))


def uptime(seconds: int) -> str:
    """The two largest units: 3d 4h, 5m 6s, 7s."""
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    parts = [f"{n}{unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (seconds % 60, "s")) if n]
    return " ".join(parts[:2]) or "0s"
