"""The checks after a fault or an attack: is the server that went through it as it was before?"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
from patience import PATIENCE_S
from served import Octavo, wait_until

KNOWN = {"prompt": "The known text", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
RSS_SLACK = 48 << 20
"""What the allocator and lazily loaded libraries may take: a leak of one large body, or of all tokens, is more."""
POOL_THREADS = 24
"""Threads of pools that grow with use and then stay: asyncio's (at most cores + 4), AnyIO's."""
CHECKER = "octavo-grammar"
"""Started with the first grammar, ended and started again as it likes."""
CHECKER_RSS = 600 << 20


def ask(octavo: Octavo, path: str, body: Any, method: str = "POST", timeout: float = 60.0) -> tuple[int, Any, Any]:
    """→ status, JSON (or text), headers. `body`: bytes as they are, anything else as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", octavo.port, timeout=timeout)
    try:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        try:
            return response.status, json.loads(data), response.headers
        except ValueError:
            return response.status, data.decode(errors="replace"), response.headers
    finally:
        connection.close()


def known_text(octavo: Octavo) -> str:
    status, answer, _ = ask(octavo, "/v1/completions", KNOWN)
    assert status == 200, answer
    return str(answer["choices"][0]["text"])


@dataclass
class _Process:
    pid: int
    num_fds: int
    num_threads: int
    rss: int

    @classmethod
    def of(cls, process: psutil.Process) -> _Process:
        with process.oneshot():
            return cls(process.pid, process.num_fds(), process.num_threads(), process.memory_info().rss)


def _processes(octavo: Octavo) -> dict[str, _Process]:
    return {"octavo-supervisor": _Process.of(octavo.ps)} | {
        title: _Process.of(process) for title, process in octavo.children().items() if title.startswith("octavo-")
    }


def _count_is_wrong(octavo: Octavo) -> list[str]:
    """One of each."""
    titles = [(process.cmdline() or ["?"])[0].split()[0] for process in octavo.ps.children(recursive=True)]
    return [f"{titles.count(title)} of {title}" for title in set(titles) if titles.count(title) > 1]


def _idle(octavo: Octavo) -> bool:
    status, metrics = octavo.get("/v1/metrics")
    return (
        status == 200
        and metrics["kv"]["blocks_used"] == 0
        and metrics["queue"] == {"waiting": 0, "running": 0}
        and octavo.get("/ready")[0] == 200
    )


@contextmanager
def unharmed(octavo: Octavo, *, pages_free_s: float = 5.0, rss_slack: int = RSS_SLACK) -> Iterator[None]:
    """Afterwards: healthy and ready, no page in use, descriptors, threads and children as before, memory flat, and the
    known text as it was. Processes that were replaced meanwhile are compared with those they replaced."""
    text = known_text(octavo)
    wait_until(lambda: _idle(octavo), "an idle engine")
    before = _processes(octavo)
    yield
    assert octavo.process.poll() is None, octavo.output
    wait_until(lambda: octavo.get("/ready")[0] == 200, "a ready server")
    assert octavo.get("/health") == (200, {"status": "healthy", "service": "octavo"})
    wait_until(lambda: _idle(octavo), "all pages to be free", pages_free_s)
    assert known_text(octavo) == text
    deadline = time.monotonic() + PATIENCE_S / 5
    while (
        worse := _worse(before, _processes(octavo), rss_slack) + _count_is_wrong(octavo)
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worse, worse


def _worse(before: dict[str, _Process], after: dict[str, _Process], rss_slack: int) -> list[str]:
    found = []
    if set(before) - {CHECKER} != set(after) - {CHECKER}:
        found.append(f"children {sorted(before)} → {sorted(after)}")
    if CHECKER in after and after[CHECKER].rss > CHECKER_RSS:
        found.append(f"{CHECKER}: resident MiB {after[CHECKER].rss >> 20}")
    for title in (before.keys() & after.keys()) - {CHECKER}:
        old, new = before[title], after[title]
        if new.num_fds > old.num_fds:
            found.append(f"{title}: descriptors {old.num_fds} → {new.num_fds}")
        if new.num_threads > old.num_threads + (0 if title == "octavo-supervisor" else POOL_THREADS):
            found.append(f"{title}: threads {old.num_threads} → {new.num_threads}")
        if new.rss > old.rss + rss_slack:
            found.append(f"{title}: resident MiB {old.rss >> 20} → {new.rss >> 20}")
    return found
