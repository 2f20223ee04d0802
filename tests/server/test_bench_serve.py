"""The load generator against a live server over the fake engine: counts, figures, and failures told apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_harness import Live, live

from octavo.bench.serve import Load, Sample, run_serve, serve_figures
from octavo.errors import ConfigError

SMALL = {"input_len": 8, "output_len": 20, "vocab_size": 250}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(step_delay=0.001) as found:
        yield found


def test_load_on_a_server(server: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run_serve(server.url, Load(12, concurrency=4, **SMALL), json_file=tmp_path / "out.json")
    assert (figures["requests_ok"], figures["errors"]) == (12, 0)
    assert figures["output_tok_s"] * figures["duration_s"] == pytest.approx(12 * 20, rel=0.02)
    assert figures["ttft_ms"]["p50"] > 0 and figures["itl_ms"]["p99"] >= figures["itl_ms"]["p50"] > 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["benchmark"] == "serve" and found["load"]["concurrency"] == 4
    assert found["load"]["model"] == "fake-model" and found["output_tok_s"] == figures["output_tok_s"]
    assert "requests_ok" in capsys.readouterr().out
    assert server.engine.num_running == 0


def test_arrivals_at_a_rate(server: Live) -> None:
    load = Load(10, concurrency=None, request_rate=50.0, **SMALL)
    figures = run_serve(server.url + "/v1", load, model="fake-model")
    assert figures["requests_ok"] == 10 and figures["duration_s"] > 0.05


def test_failures_are_errors_of_the_run(server: Live, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="HTTP 404"):
        run_serve(server.url, Load(2, **SMALL), model="no-such-model")
    with pytest.raises(ConfigError, match="does not say which models"):
        run_serve("http://127.0.0.1:9", Load(2, **SMALL))
    with pytest.raises(ConfigError, match="not a URL"):
        run_serve("ftp://x", Load(2, **SMALL))
    with pytest.raises(ConfigError, match="--json"):
        run_serve(server.url, Load(2, **SMALL), json_file=tmp_path / "nowhere" / "x.json")


def test_a_stream_that_fails_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with live(fail_at=10) as server, pytest.raises(ConfigError, match="first request"):
        run_serve(server.url, Load(2, **SMALL))


def test_figures() -> None:
    good = Sample(0.0, [1.0, 1.5, 2.0], output_tokens=3)
    bad = Sample(0.0, [1.0], error="broken")
    figures = serve_figures([good, bad], 2.0, 10)
    assert (figures["requests_ok"], figures["errors"]) == (1, 1)
    assert figures["output_tok_s"] == 1.5 and figures["decode_tok_s"] == 2 and figures["ttft_ms"]["p50"] == 1000
    assert serve_figures([bad], 2.0, 10)["output_tok_s"] == 0
