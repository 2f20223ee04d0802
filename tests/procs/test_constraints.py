"""Grammars and embeddings on real processes: the engine killed under constrained streams, sampled and greedy, which end
as undisturbed ones do; embeddings in flight at that moment; threads that start with the first grammar only."""

from __future__ import annotations

import http.client
import json
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from patience import PATIENCE_S
from served import OPTIONS, Octavo, wait_until
from tiny import write_tiny_model

PATTERN = r"([a-f]{3} ){25}[0-9]{2}"
BOUND = [
    {"structured_outputs": {"regex": PATTERN}, "temperature": 0, "ignore_eos": False},
    {"structured_outputs": {"regex": PATTERN}, "temperature": 1.2, "seed": 5, "ignore_eos": False},
    {"guided_json": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 9, "maxItems": 9},
     "temperature": 1.0, "seed": 6, "presence_penalty": 0.5, "ignore_eos": False},
    {"temperature": 0},
]  # fmt: skip
TOKENS = 120


@pytest.fixture(scope="module")
def octavo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Octavo]:
    folder = tmp_path_factory.mktemp("constraints")
    model = str(write_tiny_model(folder / "tiny"))
    command = Octavo(folder, "serve", model, "--port", "0", *OPTIONS, OCTAVO_FAULTS="step_delay_ms=8")
    try:
        yield command.started()
    finally:
        command.close()


def post(octavo: Octavo, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", octavo.port, timeout=PATIENCE_S)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    try:
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_constrained_streams_survive_the_engine(octavo: Octavo) -> None:
    engine = octavo.child("octavo-engine")
    before = engine.num_threads()
    wanted = []
    for fields in BOUND:
        stream = octavo.stream(TOKENS, **fields)
        wanted.append((stream.result(), stream.finish_reason))
    assert engine.num_threads() <= before + 3
    assert re.fullmatch(PATTERN, wanted[0][0]) and re.fullmatch(PATTERN, wanted[1][0])
    assert len(json.loads(wanted[2][0])) == 9 and [reason for _, reason in wanted] == ["stop"] * 3 + ["length"]

    embedded: list[tuple[int, Any]] = []
    asked = {"input": [[n % 90 + 1] * (100 + n) for n in range(12)]}
    _, whole = post(octavo, "/v1/embeddings", asked)
    streams = [octavo.stream(TOKENS, **fields) for fields in BOUND]
    thread = threading.Thread(target=lambda: embedded.append(post(octavo, "/v1/embeddings", asked)))
    thread.start()
    wait_until(lambda: all(stream.pieces for stream in streams), "the first tokens")
    engine.send_signal(signal.SIGKILL)
    assert [(stream.result(), stream.finish_reason) for stream in streams] == wanted
    thread.join(PATIENCE_S)
    ((status, again),) = embedded
    assert status == 200
    for one, other in zip(whole["data"], again["data"], strict=True):
        assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-6)


def test_what_is_wrong_is_refused_beside_streams(octavo: Octavo) -> None:
    stream = octavo.stream(TOKENS, **BOUND[0])
    for wrong in ({"regex": "("}, {"grammar": "start: nowhere"}, {"json": {"type": "nothing"}}):
        status, body = post(octavo, "/v1/completions", {"prompt": "a", "structured_outputs": wrong})
        assert status == 400 and body["error"]["param"].startswith("structured_outputs")
    assert re.fullmatch(PATTERN, stream.result())
    wait_until(lambda: octavo.get("/v1/metrics")[1]["kv"]["blocks_used"] == 0, "the pages")
