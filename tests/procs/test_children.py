"""The supervisor's rules with children that are a few lines of Python: who is started again, when it gives up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from served import wait_until

from octavo.config import EngineConfig
from octavo.processes import spawn as spawn_module
from octavo.processes.signals import STOPPED_AT_ONCE
from octavo.supervisor import child as child_module
from octavo.supervisor.child import Child
from octavo.supervisor.entry import EngineSpec
from octavo.supervisor.supervisor import Supervisor, _caught_signals

READY = "import os, sys, json, time, signal; spec = json.load(sys.stdin); os.write(spec['ready_fd'], b'r'); "
SLEEP = "time.sleep(60)"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Child]:
    """Makes a child that runs the given code instead of Octavo."""
    codes: dict[str, str] = {}
    monkeypatch.setattr(child_module, "FIRST_DELAY_S", 0.01)

    class Coded(Child):
        def start(self) -> None:
            monkeypatch.setattr(spawn_module, "command", lambda _module: codes[self.name])
            super().start()

    def make_child(name: str, code: str) -> Child:
        codes[name] = code

        def make_spec(ready_fd: int) -> EngineSpec:
            return EngineSpec(
                parent=os.getpid(),
                endpoint="ipc:///x",
                config=EngineConfig(),
                ready_fd=ready_fd,
                drain_timeout=1.0,
                log_level="info",
            )

        return Coded(name, make_spec)

    return make_child


def _supervise(children: list[Child], during: Callable[[], None] = lambda: None, drain: float = 1.0) -> int:
    """Runs the supervisor's loop here; `during` runs beside it."""
    failed: list[BaseException] = []

    def beside() -> None:
        try:
            during()
        except BaseException as error:
            failed.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    with _caught_signals() as signals:
        thread = threading.Thread(target=beside)
        thread.start()
        try:
            code = Supervisor(children, signals, drain, "http://x").run()
        finally:
            thread.join()
            for child in children:
                child.kill()
                child.wait()
    assert not failed, failed
    return code


def test_ready_is_said_once_and_only_when_all_are(make: Callable[..., Child], caplog: pytest.LogCaptureFixture) -> None:
    """A server that has started waits for its engine; killed meanwhile it is started again, as often as that is."""
    started = READY.replace("b'r'", "b's'")
    children = [make("server", started + SLEEP), make("engine", READY + SLEEP)]

    def during() -> None:
        wait_until(lambda: children[1].ready and children[0]._has_started, "both")
        for _ in range(child_module.MAX_FAILED_STARTS + 1):
            pid = children[0].pid or 0
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: children[0].pid not in (None, pid) and children[0]._has_started, "another")  # noqa: B023
        os.kill(os.getpid(), signal.SIGTERM)

    with caplog.at_level("INFO", "octavo"):
        assert _supervise(children, during) == 0
    assert "ready after" not in caplog.text and not children[0].ready
    caplog.clear()
    children = [make("server", started + "os.write(spec['ready_fd'], b'r'); " + SLEEP), make("engine", READY + SLEEP)]

    def twice() -> None:
        wait_until(lambda: all(child.ready for child in children), "both")
        pid = children[1].pid or 0
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: children[1].pid not in (None, pid) and children[1].ready, "another engine")
        os.kill(os.getpid(), signal.SIGTERM)

    with caplog.at_level("INFO", "octavo"):
        assert _supervise(children, twice) == 0
    assert caplog.text.count("ready after") == 1 and caplog.text.count("the engine is back") == 1


def test_signal_stops_in_order(make: Callable[..., Child], tmp_path: Path) -> None:
    order = tmp_path / "order"
    leave = f"signal.signal(signal.SIGTERM, lambda *a: (open({str(order)!r}, 'a').write('%s '), sys.exit(0))); "
    code = leave + READY.split("; ", 1)[1] + SLEEP
    imports = "import os, sys, json, time, signal; "
    children = [make(name, imports + code.replace("%s", name)) for name in ("server", "engine")]

    def during() -> None:
        wait_until(lambda: all(child.ready for child in children), "two children")
        os.kill(os.getpid(), signal.SIGTERM)

    assert _supervise(children, during) == 0
    assert order.read_text() == "server engine "


def test_killed_child_is_started_again(make: Callable[..., Child]) -> None:
    children = [make("server", READY + SLEEP)]
    pids: list[int] = []

    def during() -> None:
        for _ in range(3):
            wait_until(lambda: children[0].ready and children[0].pid not in pids, "a new child")
            pids.append(children[0].pid or 0)
            os.kill(pids[-1], signal.SIGKILL)
        wait_until(lambda: children[0].ready and children[0].pid not in pids, "a new child")
        os.kill(os.getpid(), signal.SIGINT)

    assert _supervise(children, during) == 0
    assert len(set(pids)) == 3


@pytest.mark.parametrize("code", [2, 3, 4, 5])
def test_error_at_the_start_ends_everything_with_its_code(make: Callable[..., Child], code: int) -> None:
    children = [make("server", READY + SLEEP), make("engine", f"import sys; sys.exit({code})")]
    assert _supervise(children) == code
    assert not any(child.alive for child in children)


def test_child_that_never_starts_is_given_up(make: Callable[..., Child], caplog: pytest.LogCaptureFixture) -> None:
    children = [make("server", READY + SLEEP), make("engine", "import os; os.kill(os.getpid(), 9)")]
    with caplog.at_level("WARNING", "octavo"):
        assert _supervise(children) == 1
    assert caplog.text.count("starting it again") == child_module.MAX_FAILED_STARTS - 1
    assert "the engine does not start: it was killed by SIGKILL" in caplog.text


def test_engine_that_worked_may_fail_to_start_once(make: Callable[..., Child], tmp_path: Path) -> None:
    """Memory that is short right after a crash may be there a moment later."""
    count = tmp_path / "count"
    code = (
        f"import os, sys; n = len(open({str(count)!r}, 'a+').read()); f = open({str(count)!r}, 'a'); f.write('x'); "
        "f.close(); n = os.path.getsize(f.name)\nif n == 2: sys.exit(5)\n" + READY + SLEEP
    )
    children = [make("engine", code)]

    def during() -> None:
        wait_until(lambda: children[0].ready, "the first")
        first = children[0].pid or 0
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: children[0].ready and children[0].pid != first, "the third")
        os.kill(os.getpid(), signal.SIGTERM)

    assert _supervise(children, during) == 0
    assert count.read_text() == "xxx"


def test_child_that_does_not_stop_is_killed(
    make: Callable[..., Child], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("octavo.supervisor.supervisor.GRACE_S", 0.2)
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY + SLEEP
    children = [make("server", deaf)]

    def during() -> None:
        wait_until(lambda: children[0].ready, "the child")
        os.kill(os.getpid(), signal.SIGTERM)

    with caplog.at_level("WARNING", "octavo"):
        assert _supervise(children, during, drain=0.2) == 0
    assert "did not stop in time" in caplog.text


def test_second_signal_stops_at_once(make: Callable[..., Child]) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY + SLEEP
    children = [make("server", deaf)]

    def during() -> None:
        wait_until(lambda: children[0].ready, "the child")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    assert _supervise(children, during, drain=30.0) == STOPPED_AT_ONCE


def test_child_polls_for_its_parent_where_the_kernel_does_not_tell(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    child = (
        "import os, sys, time; from octavo.processes import lifeline; sys.platform = 'elsewhere'; "
        f"lifeline.POLL_S = 0.05; lifeline.die_with_parent(int(sys.argv[1])); open({str(pid_file)!r}, 'w').write("
        "str(os.getpid())); time.sleep(60)"
    )
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, str(os.getpid())])"
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        try:
            pid = int(wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the child"))
        finally:
            process.kill()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", "its end")
