"""A served model as its operators see it: JSON lines of every process, ids through server and engine, counters that
outlive an engine, traces."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S
from prometheus_client.parser import text_string_to_metric_families
from served import OPTIONS, Octavo, wait_until
from tiny import write_tiny_model

STEPS = {"OCTAVO_FAULTS": "step_delay_ms=2,raise_at_step=40"}


@pytest.fixture(scope="module")
def collected() -> Iterator[tuple[str, list[bytes]]]:
    """A collector's address, and the bodies it got."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()


@pytest.fixture(scope="module")
def octavo(tmp_path_factory: pytest.TempPathFactory, collected: tuple[str, list[bytes]]) -> Iterator[Octavo]:
    pytest.importorskip("opentelemetry.sdk.trace")
    folder = tmp_path_factory.mktemp("observed")
    model = str(write_tiny_model(folder / "tiny"))
    options = ["--log-format", "json", "--log-level", "debug", "--otlp-endpoint", collected[0]]
    command = Octavo(folder, "serve", model, "--port", "0", *OPTIONS, *options, **STEPS)
    try:
        yield command.started()
    finally:
        command.close()


def lines(octavo: Octavo) -> list[dict[str, Any]]:
    """What it has logged so far; every line is an object."""
    return [json.loads(line) for line in octavo.output.splitlines()]


def post(octavo: Octavo, request_id: str, **fields: Any) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", octavo.port, timeout=PATIENCE_S)
    body = {"prompt": "abc", "max_tokens": 5, "temperature": 0, "ignore_eos": True, **fields}
    headers = {"x-request-id": request_id, "content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def counters(octavo: Octavo) -> dict[str, float]:
    connection = http.client.HTTPConnection("127.0.0.1", octavo.port, timeout=PATIENCE_S)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples if f.type == "counter"}


def test_a_request_is_found_by_its_id_in_every_process_and_its_failure_in_all_of_them(octavo: Octavo) -> None:
    assert post(octavo, "good-one") == 200
    assert post(octavo, "bad-one", max_tokens=60) == 500
    # The answer is read before the server writes its line.
    said = {("server", "bad-one"), ("server", "good-one")}
    wait_until(lambda: said <= {(line["process"], line.get("request_id")) for line in lines(octavo)}, "the last line")
    found = lines(octavo)
    assert {line["process"] for line in found} == {"supervisor", "server", "engine"}
    (good,) = [line for line in found if line.get("request_id") == "good-one" and line["process"] == "server"]
    assert (good["status"], good["completion_tokens"], good["finish_reason"]) == (200, 5, "length")
    told = [line["message"] for line in found if line.get("request_id") == "good-one" and line["process"] == "engine"]
    assert told[0].startswith("taken in: ") and told[-1] == "length, with 5 output tokens"
    bad = [(line["process"], line["level"]) for line in found if line.get("request_id") == "bad-one"]
    assert ("engine", "error") in bad and ("server", "info") in bad
    (step,) = [line for line in found if line["message"].startswith("step ")]
    assert "injected failure" in step["exception"]


def test_counters_go_on_when_the_engine_is_killed(octavo: Octavo) -> None:
    before = counters(octavo)
    assert before["octavo:engine_step_failures_total"] == 1 and before["octavo:engine_steps_total"] >= 40
    engine = octavo.child("octavo-engine")
    engine.kill()
    wait_until(
        lambda: octavo.child("octavo-engine").pid != engine.pid and octavo.get("/ready")[0] == 200, "a new engine"
    )
    assert post(octavo, "after-it") == 200
    after = counters(octavo)
    assert after["octavo:engine_restarts_total"] == before["octavo:engine_restarts_total"] + 1
    assert after["octavo:engine_steps_total"] >= before["octavo:engine_steps_total"] + 5
    assert after["octavo:generation_tokens_total"] == before["octavo:generation_tokens_total"] + 5
    assert after["octavo:engine_step_failures_total"] == 1
    # From its first moment on the new engine's pages are known.
    kv = octavo.get("/v1/metrics")[1]["kv"]
    assert kv["blocks_total"] > 0 and kv["blocks_used"] == 0


def test_the_end_is_in_the_log_and_the_traces_are_sent(octavo: Octavo, collected: tuple[str, list[bytes]]) -> None:
    octavo.children()

    def sent(*ids: bytes) -> bool:
        return all(request_id in b"".join(collected[1]) for request_id in ids)

    wait_until(lambda: sent(b"good-one", b"bad-one"), "traces")  # of themselves, some seconds after the requests
    octavo.signal(15)
    assert octavo.ended() == 0
    assert lines(octavo)[-1]["level"] in ("info", "debug")
    dropped = "the collector does not take traces" in octavo.output  # a busy machine: the end waits a moment only
    assert sent(b"after-it") or dropped


def test_a_bad_start_is_one_object(tmp_path: Path) -> None:
    command = Octavo(tmp_path, "serve", str(tmp_path / "nothing"), "--port", "0", "--log-format", "json")
    assert command.process.wait(PATIENCE_S) not in (0, 1)
    (line,) = lines(command)
    assert line["level"] == "critical" and "nothing" in line["message"] and line["process"] == "supervisor"
