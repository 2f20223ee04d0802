"""The kernels' machine code for an H200, made without one: nothing spills but what may, what is bound by memory loads
16 bytes at a time, what is bound by the matrix units uses Hopper's. Results in benchmarks/results/h200/compiled.json
are taken over for kernels that have not changed since."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "h200" / "compiled.json"
WIDE = {
    "activation.silu_mul_kernel", "attention.decode_kernel", "edits.mask_kernel", "edits.penalize_kernel",
    "embedding.gather_kernel", "linear.dense_row_kernel", "linear.int4_row_kernel", "linear.int4_kernel",
    "linear.scaled_row_kernel", "linear.scaled_kernel", "logprobs.part", "moe.dense_kernel", "moe.scaled_kernel",
    "moe.int4_kernel", "norm.add_rms_norm_kernel", "norm.rms_norm_kernel", "rope.rope_cache_kernel", "sampling.scan",
    "sampling.draw",
}  # fmt: skip
MAY_SPILL = {"sampling.scan": 136, "sampling.draw": 56}
"""Bytes, with Triton 3.6 (3.7 needs 8 fewer). The sampler takes half the registers and a few spills, so that two
programs fit on a multiprocessor."""


def has_compiler() -> bool:
    found = find_spec("triton")
    return found is not None and (Path(found.origin or "").parent / "backends/nvidia/bin/ptxas").exists()


pytestmark = pytest.mark.skipif(not has_compiler(), reason="needs Triton with NVIDIA's assembler")


def spills(entries: list[dict[str, Any]]) -> list[tuple[str, int]]:
    found = [(entry["kernel"], entry["spilled"]) for entry in entries]
    return [(kernel, spilled) for kernel, spilled in found if spilled > MAY_SPILL.get(kernel, 0)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("compiled")
    command = [sys.executable, str(ROOT / "benchmarks/gpu/compiled.py"), "--one", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    assert "inspected code" in (out / "compiled.md").read_text()
    found: list[dict[str, Any]] = json.loads((out / "compiled.json").read_text())["entries"]
    return found


@pytest.mark.long
def test_no_kernel_spills_more_than_it_may(compiled: list[dict[str, Any]]) -> None:
    assert spills(compiled) == []
    assert all(0 < entry["registers"] <= 255 and entry["shared"] <= 227 << 10 for entry in compiled)


@pytest.mark.long
def test_memory_is_read_by_16_bytes(compiled: list[dict[str, Any]]) -> None:
    wide = {entry["kernel"]: entry["loads"]["16"] for entry in compiled}
    assert wide.keys() >= WIDE, "a kernel was renamed, or is no longer launched by the check"
    assert all(wide[kernel] > 0 for kernel in WIDE), wide


@pytest.mark.long
def test_prefill_runs_on_hoppers_matrix_units(compiled: list[dict[str, Any]]) -> None:
    (prefill,) = (entry for entry in compiled if entry["kernel"] == "attention.prefill_kernel")
    assert prefill["hgmma"] > 0 and prefill["hmma"] == 0


def test_the_committed_results_are_no_measurement_and_show_no_spills() -> None:
    result = json.loads(RESULTS.read_text())
    assert result["measured"] is False and result["target"] == "sm_90a"
    assert spills(result["entries"]) == []
