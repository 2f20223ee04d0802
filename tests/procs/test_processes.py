"""Real processes: what is killed comes back, what was accepted is finished, nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from served import OPTIONS, Octavo, wait_until
from tiny import write_tiny_model

from octavo.cli import processes
from octavo.wire.endpoint import private_endpoint

PACE = {"OCTAVO_FAULTS": "step_delay_ms=10"}
TOKENS = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("procs")


@pytest.fixture(scope="module")
def model(folder: Path) -> str:
    return str(write_tiny_model(folder / "tiny"))


@pytest.fixture(scope="module")
def octavo(folder: Path, model: str) -> Iterator[Octavo]:
    """A running `octavo serve` whose steps take at least 10 ms."""
    command = Octavo(folder, "serve", model, "--port", "0", *OPTIONS, **PACE)
    try:
        yield command.started()
    finally:
        command.close()


@pytest.fixture(scope="module")
def undisturbed(octavo: Octavo) -> str:
    stream = octavo.stream(TOKENS)
    text = stream.result()
    assert stream.finish_reason == "length"
    assert len(text) > TOKENS // 8
    return text


def test_titles_one_port_and_no_torch_but_in_the_engine(octavo: Octavo) -> None:
    children = octavo.children()
    assert set(children) == {"octavo-server", "octavo-engine"}
    assert octavo.ps.cmdline()[0].split()[0] == "octavo-supervisor"
    everyone = [octavo.ps, *children.values()]
    ports = {c.laddr.port for p in everyone for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert ports == {octavo.port}
    with_torch = {p.pid for p in everyone if "libtorch" in Path(f"/proc/{p.pid}/maps").read_text()}
    assert with_torch == {children["octavo-engine"].pid}


def test_ps_lists_it(octavo: Octavo, model: str) -> None:
    (found,) = [server for server in processes.running() if server.pid == octavo.process.pid]
    assert (found.model, found.address) == (model, f"http://127.0.0.1:{octavo.port}")
    assert found.uptime >= 0 and processes.state(found.address) == "ready"
    assert processes.state("http://127.0.0.1:9") == "no answer"


def test_idle_costs_next_to_nothing(octavo: Octavo, undisturbed: str) -> None:
    everyone = [octavo.ps, *octavo.children().values()]
    time.sleep(0.5)

    def used() -> float:
        return sum(sum(p.cpu_times()[:2]) for p in everyone)

    def share() -> float:
        before, started = used(), time.monotonic()
        time.sleep(3.0)
        return (used() - before) / (time.monotonic() - started)

    # Under 0.01 as measured; polling takes 1. The rest of a start-up may fall into one window, not into all.
    shares = [share()]
    while shares[-1] >= 0.1 and len(shares) < 3:
        shares.append(share())
    assert shares[-1] < 0.1, shares


def test_streams_go_on_after_the_engine_is_killed(octavo: Octavo, undisturbed: str) -> None:
    engine = octavo.child("octavo-engine")
    sampled = octavo.stream(TOKENS, temperature=1.0, seed=5).result()
    streams = [octavo.stream(TOKENS).begun() for _ in range(3)]
    dice = octavo.stream(TOKENS, temperature=1.0, seed=5).begun()
    engine.kill()
    wait_until(lambda: octavo.get("/ready")[0] == 503, "/ready to say 503")
    refused = octavo.stream(5)
    refused.result()
    assert refused.error is not None
    assert refused.error["code"] == "unavailable"
    assert [stream.result() for stream in streams] == [undisturbed] * 3
    assert dice.result() == sampled != undisturbed
    assert all(stream.error is None and stream.finish_reason == "length" for stream in streams)
    assert octavo.get("/ready")[0] == 200
    assert octavo.child("octavo-engine").pid != engine.pid
    wait_until(lambda: octavo.running() == 0, "an idle engine")


def test_sigterm_finishes_what_runs_and_leaves_nothing(octavo: Octavo, undisturbed: str) -> None:
    stream = octavo.stream(TOKENS).begun()
    octavo.children()
    octavo.signal(signal.SIGTERM)
    wait_until(lambda: octavo.get("/ready")[0] == 503, "/ready to say 503")
    refused = octavo.stream(5)
    refused.result()
    assert refused.error is not None
    assert stream.result() == undisturbed
    assert stream.finish_reason == "length"
    assert octavo.ended() == 0
    assert "Traceback" not in octavo.output


@pytest.mark.long
def test_second_signal_stops_at_once_drain_timeout_is_kept(folder: Path, model: str) -> None:
    octavo = Octavo(folder, "serve", model, "--port", "0", *OPTIONS, **PACE).started()
    try:
        octavo.stream(1500).begun()
        octavo.signal(signal.SIGINT)
        time.sleep(0.5)
        assert octavo.process.poll() is None
        octavo.signal(signal.SIGINT)
        assert octavo.ended() == 130
    finally:
        octavo.close()


@pytest.mark.long
def test_drain_is_bounded_and_the_rest_gets_an_error(folder: Path, model: str) -> None:
    octavo = Octavo(folder, "serve", model, "--port", "0", "--drain-timeout", "1", *OPTIONS, **PACE).started()
    try:
        stream = octavo.stream(1500).begun()
        signalled = time.monotonic()
        octavo.signal(signal.SIGINT)
        assert octavo.ended() == 0
        assert time.monotonic() - signalled > 0.9
        stream.result()
        assert stream.error is not None
        assert stream.finish_reason is None
    finally:
        octavo.close()


def test_killed_supervisor_leaves_no_orphans_and_hang_is_ended(folder: Path, model: str) -> None:
    octavo = Octavo(
        folder, "serve", model, "--port", "0", "--watchdog-timeout", "1", *OPTIONS, OCTAVO_FAULTS="hang_at_step=40"
    ).started()
    try:
        engine = octavo.child("octavo-engine")
        stream = octavo.stream(60).begun()
        wait_until(lambda: not engine.is_running(), "the watchdog")
        assert "--watchdog-timeout" in octavo.output
        assert re.search(r"faults\.py.*in collect", octavo.output)
        wait_until(lambda: octavo.get("/ready")[0] == 200, "a new engine")
        stream.result()
        assert stream.finish_reason == "length"  # the new engine has a step 40 of its own, beyond this stream's end
        octavo.children()
        octavo.process.kill()
        octavo.process.wait()
        octavo.gone()
    finally:
        octavo.close()


def _one_line(octavo: Octavo) -> str:
    lines = [line for line in octavo.output.splitlines() if "error:" in line]
    assert len(lines) == 1, octavo.output
    assert "Traceback" not in octavo.output
    return lines[0]


def test_port_in_use(folder: Path, model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        octavo = Octavo(folder, "serve", model, "--port", str(port))
        assert octavo.ended() == 2
    assert f"port {port}" in _one_line(octavo)
    assert "--port" in _one_line(octavo)


@pytest.mark.long
def test_corrupt_model_and_memory_that_does_not_suffice(folder: Path, model: str, tmp_path: Path) -> None:
    broken = write_tiny_model(tmp_path / "broken")
    weights = broken / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    corrupt = Octavo(folder, "serve", str(broken), "--port", "0")
    small = Octavo(folder, "serve", model, "--port", "0", "--kv-cache-memory", "1KiB")
    try:
        assert corrupt.ended(30.0) == 3
        assert "model.safetensors" in _one_line(corrupt)
        assert small.ended(30.0) == 5
        assert "--kv-cache-memory" in _one_line(small)
    finally:
        corrupt.close()
        small.close()


@pytest.mark.long
def test_engine_alone_with_two_servers(folder: Path, model: str) -> None:
    with private_endpoint() as endpoint:
        started: list[Octavo] = []

        def start(*args: str) -> Octavo:
            started.append(Octavo(folder, *args, **PACE))
            return started[-1]

        try:
            engine = start("engine", model, "--endpoint", endpoint, *OPTIONS)
            servers = [start("serve", "--connect", endpoint, "--port", "0") for _ in range(2)]
            for server in servers:
                server.started()
                assert set(server.children()) == {"octavo-server"}
            texts = [stream.result() for stream in [server.stream(40) for server in servers]]
            assert texts[0] == texts[1] != ""
            servers[0].signal(signal.SIGTERM)
            assert servers[0].ended() == 0
            assert servers[1].stream(40).result() == texts[0]
            stream = servers[1].stream(TOKENS).begun()
            engine.signal(signal.SIGTERM)
            assert engine.ended() == 0
            stream.result()
            assert stream.finish_reason == "length"
            assert servers[1].get("/ready")[0] == 503
        finally:
            for command in started:
                command.close()
