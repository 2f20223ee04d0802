"""The kernel check's own logic, on tiny sizes by Triton's interpreter: it ends, compares everything and measures
nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_S
from triton_ops import HAS_TRITON

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
KERNELS = {
    "rms_norm", "add_rms_norm", "silu_mul", "rope_cache", "gather_rows", "decode_attention", "prefill_attention",
    "linear", "route", "experts", "sample", "mask", "penalize", "logprobs", "decode_step", "decode_done",
}  # fmt: skip

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")


def check(out: Path, *flags: str) -> tuple[int, dict[str, object]]:
    command = [sys.executable, str(GPU / "kernels.py"), "--out", str(out), "--interpret", *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE_S)
    assert ran.returncode in (0, 1), ran.stderr
    return ran.returncode, json.loads((out / "kernels.json").read_text())


@pytest.mark.long
def test_the_kernel_check_compares_every_kernel_and_measures_nothing(tmp_path: Path) -> None:
    code, result = check(tmp_path)
    cases, tests = result["cases"], result["tests"]
    assert isinstance(cases, list) and isinstance(tests, dict)
    assert code == 0 and result["mode"] == "interpret" and result["left_out"] == []
    assert tests["ended"] and tests["passed"] > 0 and tests["exit"] == 0
    assert {case["kernel"] for case in cases} >= KERNELS
    for case in cases:
        assert case["correct"] and 0 <= case["error"] <= case["tolerance"], case["name"]
        assert case["nbytes"] > 0 and case["rows"] > 0 and case["bound"] in ("copy", "matmul")
        unmeasured = ("us", "eager_us", "flashinfer_us", "share", "eager_ratio", "flashinfer_ratio")
        assert all(case[name] is None for name in unmeasured)
    table = (tmp_path / "kernels.md").read_text()
    assert "Nothing was measured" in table and all(f"## {kernel}" in table for kernel in KERNELS)
    assert not list(tmp_path.glob("check-*"))


@pytest.mark.long
def test_what_there_is_no_time_for_is_listed(tmp_path: Path) -> None:
    code, result = check(tmp_path, "--minutes", "0.05")
    assert code == 1 and result["cases"] == []
    assert isinstance(result["tests"], dict) and not result["tests"]["ended"]
    left_out = result["left_out"]
    assert isinstance(left_out, list) and len(left_out) == len(set(left_out)) > len(KERNELS)
    assert "Left out" in (tmp_path / "kernels.md").read_text()
