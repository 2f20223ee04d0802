"""Benchmarks of the engine in this process: right lengths, right arithmetic, a file fit for later comparisons."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from echo import EchoExecutor, write_model
from rich.console import Console

from octavo.bench.driver import Bench, Timeline
from octavo.bench.latency import latency_figures, run_latency
from octavo.bench.report import percentile, report
from octavo.bench.throughput import run_throughput, throughput_figures
from octavo.config import EngineConfig
from octavo.errors import ConfigError, EngineError


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    return EngineConfig(model=str(write_model(tmp_path_factory.mktemp("bench-model"))), max_num_seqs=4)


def check_file(path: Path, benchmark: str) -> None:
    found = json.loads(path.read_text())
    assert found["benchmark"] == benchmark
    for name in ("prefill_tok_s", "decode_tok_s", "output_tok_s"):
        assert found[name] > 0, name
    for name in ("ttft_ms", "itl_ms"):
        assert 0 < found[name]["p50"] <= found[name]["p99"], name
    assert found["machine"]["cores"] >= 1 and found["versions"]["torch"] and found["date"].startswith("20")
    assert found["config"]["prefix_cache"] is False and found["engine"]["backend"] == "echo"
    assert "/" not in found["config"]["model"] and "model_path" not in found["engine"]


def test_latency(config: EngineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    executor = EchoExecutor(delay=0.001)
    figures = run_latency(config, 20, 10, 3, tmp_path / "out.json", executor=executor)
    check_file(tmp_path / "out.json", "latency")
    assert executor.steps == 4 * 10 and executor.shut == 1 and executor.widest == 1
    assert figures["itl_ms"]["p50"] >= 1
    assert "decode_tok_s" in capsys.readouterr().out


def test_throughput(config: EngineConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    executor = EchoExecutor(delay=0.001)
    figures = run_throughput(config, 4, 16, 8, tmp_path / "out.json", executor=executor)
    check_file(tmp_path / "out.json", "throughput")
    assert executor.widest == 4 and executor.shut == 1
    assert figures["total_tok_s"] == pytest.approx(figures["output_tok_s"] * 3, rel=0.01)
    assert "output_tok_s" in capsys.readouterr().out


def test_one_token_is_enough(config: EngineConfig) -> None:
    assert run_latency(config, 5, 1, 1, executor=EchoExecutor())["decode_tok_s"] == 0.0
    assert run_throughput(config, 2, 5, 1, executor=EchoExecutor())["decode_tok_s"] == 0.0


def test_lengths_and_files_that_cannot_be(config: EngineConfig, tmp_path: Path) -> None:
    executor = EchoExecutor()
    with pytest.raises(ConfigError, match=r"200.*57.*256"):
        run_latency(config, 200, 57, 1, executor=executor)
    assert executor.shut == 1
    with pytest.raises(ConfigError, match="--json"):
        run_latency(config, 2, 2, 1, tmp_path / "nowhere" / "out.json", executor=executor)
    with pytest.raises(EngineError):
        run_throughput(config, 2, 5, 5, executor=EchoExecutor(fail_at=2))


def test_prompts_are_the_same_in_every_run_and_hold_no_special_token(config: EngineConfig) -> None:
    def prompts() -> list[list[int]]:
        bench = Bench(config, 30, 2, EchoExecutor())
        try:
            return [bench._prompt(30).token_ids for _ in range(5)]
        finally:
            bench.close()

    first = prompts()
    assert first == prompts() and first[0] != first[1]
    assert all(len(ids) == 30 and max(ids) < 256 for ids in first)


def test_figures() -> None:
    runs = [Timeline(0.0, [0.5, 0.6, 0.7, 0.9]), Timeline(10.0, [11.0, 11.1, 11.2, 11.3])]
    latency = latency_figures(runs, 100)
    assert latency["prefill_tok_s"] == 150 and latency["ttft_ms"]["p50"] == 750
    assert latency["decode_tok_s"] == pytest.approx((7.5 + 10) / 2)
    together = [Timeline(0.0, [1.0, 3.0, 4.0]), Timeline(0.0, [2.0, 3.0, 4.0])]
    found = throughput_figures(together, 10)
    assert found["output_tok_s"] == 1.5 and found["prefill_tok_s"] == 10 and found["decode_tok_s"] == 2
    assert percentile([], 50) == 0 and percentile([1.0, 2.0, 3.0], 50) == 2 and percentile([1.0, 2.0], 99) == 1.99


def test_a_report_without_an_engine(tmp_path: Path) -> None:
    out = io.StringIO()
    report("serve", {"itl_ms": {"p50": 1.0}}, {"url": "x"}, config=None, engine=None,
           json_file=tmp_path / "a.json", console=Console(file=out))  # fmt: skip
    assert "p50 1.0" in out.getvalue() and json.loads((tmp_path / "a.json").read_text())["config"] is None
