"""The GPUs that a process may use, and what is missing to use them: reasons in words, and torch is never imported."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_nvml import A10, H200, L4, P40, T4, FakeNvml, cuda
from test_resolve import FACTS, HARDWARE

from octavo.config import gpus
from octavo.config.decide import Decision
from octavo.config.engine import EngineConfig
from octavo.config.gpus import Cuda, Gpu, find_gpus, torch_cuda
from octavo.config.resolve import resolve
from octavo.errors import ConfigError
from octavo.modelfiles.files import ModelFiles
from octavo.supervisor import supervisor

LOST = Gpu("NVIDIA L4", (8, 9), 0, 0, problem="GPU is lost")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")  # so that it is what it was after the test


def test_what_the_driver_tells() -> None:
    nvml = FakeNvml([H200, L4], version=12080)
    found = find_gpus(nvml)
    assert found.gpus == (H200, L4) and found.driver == (12, 8)
    assert found.gpus[0].memory_taken == 1 << 30
    assert nvml.inits == nvml.shutdowns == 1


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1", ["NVIDIA L4"]),
        ("2, 0", ["NVIDIA A10", "NVIDIA H200"]),
        ("1,7,0", ["NVIDIA L4"]),  # CUDA stops at the first that is none
        ("0,-1,1", ["NVIDIA H200"]),
        ("GPU-b000-1111", ["NVIDIA L4"]),
        ("GPU-c", ["NVIDIA A10"]),
        ("MIG-1", ["NVIDIA L4"]),
    ],
)
def test_those_that_the_environment_leaves(visible: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in find_gpus(FakeNvml([H200, L4, A10])).gpus] == names


@pytest.mark.parametrize("visible", ["", "-1", "9", "NoDevFiles"])
def test_none_is_left(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = find_gpus(FakeNvml([H200, L4]))
    why = found.why_not(0)
    assert why is not None
    if visible == "NoDevFiles":
        assert why == "GPU NoDevFiles does not work: Not Found"
    else:
        assert why == "there is no GPU: CUDA_VISIBLE_DEVICES hides all 2"


def test_several_are_numbered_by_cuda_as_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    find_gpus(FakeNvml([H200]))
    assert "CUDA_DEVICE_ORDER" not in os.environ
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    find_gpus(FakeNvml([H200, L4]))
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST", "what the user has set stays"
    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    find_gpus(FakeNvml([H200, L4]))
    assert os.environ.pop("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"


def test_a_driver_that_fails_is_a_reason() -> None:
    nvml = FakeNvml([H200], init_error="Driver Not Loaded")
    assert find_gpus(nvml).why_not(0) == "there is no GPU: the NVIDIA driver cannot be asked (Driver Not Loaded)"
    assert nvml.shutdowns == 0, "what was not begun is not ended"
    assert find_gpus(FakeNvml([])).why_not(0) == "there is no GPU: the NVIDIA driver finds none"


def test_a_gpu_that_fails_leaves_the_others() -> None:
    found = find_gpus(FakeNvml([LOST, H200]))
    assert [gpu.problem for gpu in found.gpus] == ["GPU is lost", None] and found.gpus[1] == H200
    assert replace(found, torch=(13, 0), has_triton=True).why_not(0) == "NVIDIA L4 does not work: GPU is lost"
    assert replace(found, torch=(13, 0), has_triton=True).why_not(1) is None


def test_without_a_driver_its_module_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DRIVER_LIBRARY", "libno-such-driver.so.1")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpus().why_not(0) == "there is no GPU: the NVIDIA driver is not installed"
    monkeypatch.setattr(gpus, "DRIVER_LIBRARY", None)  # this process itself: any machine has that
    assert find_gpus().absent == "its driver is asked through nvidia-ml-py, which is not installed"


@pytest.mark.parametrize(
    ("found", "index", "why"),
    [
        (cuda(H200, L4), 1, None),
        (cuda(T4), 0, "Tesla T4 has compute capability 7.5, and 8.0 is needed"),
        (Cuda(), 0, "there is no GPU: none was looked for"),
        (cuda(H200, L4), 2, "there is no such GPU; there are cuda:0 (NVIDIA H200), cuda:1 (NVIDIA L4)"),
        (cuda(P40), 0, "Tesla P40 has compute capability 6.1, and 8.0 is needed"),
        (
            replace(cuda(H200), torch=None),
            0,
            "PyTorch is installed without CUDA: install it for CUDA with the command that "
            "https://pytorch.org/get-started/locally shows; the driver knows CUDA up to 13.0",
        ),
        (
            replace(cuda(H200), driver=(12, 4)),
            0,
            "PyTorch is built for CUDA 13.0, and the driver knows only 12.4: update the driver, or install PyTorch for "
            "CUDA 12",
        ),
        (replace(cuda(H200), driver=(13, 3)), 0, None),
        (replace(cuda(H200), driver=(13, 0), torch=(13, 2)), 0, None),  # within a major version any will do
        (replace(cuda(H200), has_triton=False), 0, "Triton is not installed: pip install triton"),
    ],
)
def test_what_is_missing(found: Cuda, index: int, why: str | None) -> None:
    assert found.why_not(index) == why


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", (13, 0)),
        ('debug = False\ncuda = "12.8"\n', (12, 8)),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.2'\n", None),
        ("", None),
    ],
)
def test_the_cuda_that_torch_was_built_for(text: str, version: tuple[int, int] | None, tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text(f"from typing import Optional\n__version__ = '2.11.0'\n{text}")
    assert torch_cuda(tmp_path / "version.py") == version
    assert torch_cuda(tmp_path / "none.py") is None


def test_torch_says_the_same_of_itself_and_is_not_imported() -> None:
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    version = runpy.run_path(str(Path(spec.origin).parent / "version.py"))["cuda"]
    assert torch_cuda() == (None if version is None else tuple(map(int, version.split(".")[:2])))
    code = "import sys; from octavo.config.gpus import torch_cuda; torch_cuda(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_engine_keeps_its_gpu_over_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was chosen once and fails is not quietly replaced by the CPU."""
    hardware = replace(HARDWARE, cuda=cuda(H200))
    monkeypatch.setattr(supervisor, "detect", lambda: hardware)
    monkeypatch.setattr(supervisor, "fetch", lambda config, progress: ModelFiles("tiny", Path("nowhere")))
    monkeypatch.setattr(
        supervisor, "decide", lambda config, machine, _files: Decision(FACTS, resolve(config, machine, FACTS, "tiny"))
    )
    config = supervisor._check_model(EngineConfig(), as_log=False)[1]
    assert config.device == "cuda:0"
    lost = replace(hardware, cuda=cuda(LOST))
    with pytest.raises(ConfigError, match="--device cuda:0: NVIDIA L4 does not work: GPU is lost"):
        resolve(config, lost, FACTS, "tiny")
    assert supervisor._check_model(EngineConfig(device="cpu"), as_log=False)[1].device == "cpu"
    monkeypatch.setattr(supervisor, "fetch", lambda config, progress: pytest.fail("fetched"))
    with pytest.raises(ConfigError, match="there is no such GPU"):
        supervisor._check_model(EngineConfig(device="cuda:4"), as_log=False)
