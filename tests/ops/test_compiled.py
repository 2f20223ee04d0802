"""The kernels' machine code for each class of GPU, made without one: it fits registers and shared memory, nothing
spills but what may, what is bound by memory loads 16 bytes at a time, what is bound by the matrix units uses the
class's own. Results in benchmarks/results/compiled are taken over for kernels that have not changed since."""

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
RESULTS = ROOT / "benchmarks" / "results" / "compiled"
TARGETS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program may take, as NVIDIA's programming guide has them."""
WIDE = {
    "activation.silu_mul_kernel", "attention.decode_kernel", "edits.mask_kernel", "edits.penalize_kernel",
    "embedding.gather_kernel", "linear.dense_row_kernel", "linear.int4_row_kernel", "linear.int4_kernel",
    "linear.scaled_row_kernel", "linear.scaled_kernel", "logprobs.part", "moe.dense_kernel", "moe.scaled_kernel",
    "moe.int4_kernel", "norm.add_rms_norm_kernel", "norm.rms_norm_kernel", "rope.rope_cache_kernel", "sampling.scan",
    "sampling.draw",
}  # fmt: skip
MAY_SPILL = {"sampling.scan": 144, "sampling.draw": 56, "attention.prefill_kernel": 72}
"""Bytes. The sampler takes half the registers and a few spills, so that two programs fit on a multiprocessor; the
attention of prompts has heads of 256, in f32 (8.0) and over fp8 blocks (9.0)."""


def has_compiler() -> bool:
    found = find_spec("triton")
    return found is not None and (Path(found.origin or "").parent / "backends/nvidia/bin/ptxas").exists()


def too_much(result: dict[str, Any], target: int) -> list[tuple[str, str, int, int]]:
    """What does not fit: (kernel, size, spilled bytes, bytes of shared memory)."""
    return [
        (entry["kernel"], entry["case"], entry["spilled"], entry["shared"])
        for entry in result["entries"]
        if entry["spilled"] > MAY_SPILL.get(entry["kernel"], 0)
        or entry["shared"] > TARGETS[target] << 10
        or not 0 < entry["registers"] <= 255
        or entry["tensor_memory"] > 512
    ]


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """(class, one launch of each kernel)"""
    if not has_compiler():
        pytest.skip("needs Triton with NVIDIA's assembler")
    out, target = tmp_path_factory.mktemp("compiled"), int(request.param)
    command = [sys.executable, str(ROOT / "benchmarks/gpu/compiled.py"), "--target", str(target), "--one", "--out", out]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    assert "inspected code" in (out / f"sm_{target}.md").read_text()
    return target, json.loads((out / f"sm_{target}.json").read_text())


@pytest.mark.long
def test_every_kernel_fits_and_reads_memory_by_16_bytes(compiled: tuple[int, dict[str, Any]]) -> None:
    target, result = compiled
    assert too_much(result, target) == []
    wide = {entry["kernel"]: entry["loads"]["16"] for entry in result["entries"]}
    assert wide.keys() >= WIDE, "a kernel was renamed, or is no longer launched by the check"
    assert all(wide[kernel] > 0 for kernel in WIDE), wide


@pytest.mark.parametrize("target", TARGETS)
def test_the_committed_tables_are_no_measurement_and_fit(target: int) -> None:
    """And prompts' attention and products run on the class's own matrix units."""
    result = json.loads((RESULTS / f"sm_{target}.json").read_text())
    assert result["measured"] is False and result["target"] == f"sm_{target}"
    assert result["shared_kib"] == TARGETS[target] and len(result["entries"]) >= len(WIDE)
    assert too_much(result, target) == []
    units = {90: "hgmma", 100: "utcmma"}.get(target, "hmma")
    large = [entry for entry in result["entries"] if entry["constants"].get("M", 0) >= 64]
    of_16_bits = [entry for entry in large if "float32" not in entry["case"]]
    assert {"attention.prefill_kernel", "linear.int4_kernel"} <= {entry["kernel"] for entry in of_16_bits}
    assert all(entry[units] > 0 for entry in of_16_bits)
