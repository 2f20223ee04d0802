"""The engine check's own logic, on tiny models on the CPU: it runs everything and measures nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import VOCAB, engine, prompts, save
from tiny_models import make_reference

CHECK = Path(__file__).parents[2] / "benchmarks" / "gpu" / "engine.py"
PARTS = {
    "octavo.llama_1b", "octavo.llama_8b", "octavo.qwen", "served.llama_1b", "peers.llama_1b", "peers.llama_8b",
    "peers.qwen",
}  # fmt: skip

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")


def check(out: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(CHECK), "--out", str(out), "--dry", *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert ran.returncode in (0, 1), ran.stderr
    return ran.returncode, json.loads((out / "engine.json").read_text())


@pytest.mark.long
def test_the_engine_check_does_everything_and_measures_nothing(tmp_path: Path) -> None:
    code, result = check(tmp_path)
    log = (tmp_path / "engine.log").read_text()
    assert result["failed"] == [] and result["left_out"] == [], log
    assert code == 0 and result["mode"] == "dry" and result["rates"] is None
    assert result["tests"]["passed"] > 0 and result["tests"]["exit"] == 0
    figures = result["figures"]
    assert {figure["part"] for figure in figures} == PARTS
    assert all(figure[name] is None for figure in figures for name in ("value", "limit", "share", "met"))
    assert not any(figure["details"] for figure in figures)
    works = {(figure["work"], figure["model"], figure["engine"]) for figure in figures}
    assert len(works) == len(figures)
    # Whatever Transformers does has its place beside what Octavo does.
    assert {work[:2] for work in works if work[2] != "octavo"} < {work[:2] for work in works if work[2] == "octavo"}
    assert "Nothing was measured" in (tmp_path / "engine.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"engine.json", "engine.md", "engine.log", "engine-tests.log"}


def test_the_graphs_of_a_step_are_found_and_replayed(device: str, tmp_path: Path) -> None:
    """What the check times alone is what the engine runs."""
    sys.path.append(str(CHECK.parent))
    from engine_octavo import replay_of

    folder = save(make_reference(vocab_size=VOCAB, bos_token_id=None, eos_token_id=None), tmp_path)
    with engine(device, folder) as found:
        streams = [found.stream(prompt, temperature=0, max_tokens=99, ignore_eos=True) for prompt in prompts((5, 9, 2))]
        for stream in streams:
            next(stream), next(stream)
        replay = replay_of(found, 3)
        worker = found._engine._executor._worker
        state = worker._runner._steps._parts.state
        with torch.inference_mode():
            worker._device.event().wait()
            before = int(state.num_computed.sum())
            for _ in range(4):
                replay()
            worker._device.event().wait()
        assert int(state.num_computed.sum()) == before + 4 * 3
        for stream in streams:
            stream.close()


def test_what_there_is_no_time_for_is_listed(tmp_path: Path) -> None:
    code, result = check(tmp_path, "--minutes", "0.05")
    assert code in (0, 1) and result["figures"] == []
    assert set(result["left_out"]) == PARTS and "Left out" in (tmp_path / "engine.md").read_text()
