"""`octavo doctor`: hardware as it is found, the memory plan from headers and options alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_nvml import GIB, H200, L4, cuda
from gguf_bytes import File, tensor
from test_resolve import FACTS, HARDWARE, ON_GPUS, layers

from octavo.cli import doctor
from octavo.cli.doctor import MIB, hardware_rows, kernel_choices, memory_plan
from octavo.config.decide import count_weights
from octavo.config.engine import EngineConfig
from octavo.config.gpus import Gpu
from octavo.config.resolve import resolve
from octavo.errors import ConfigError
from octavo.modelfiles.facts import ModelFacts
from octavo.modelfiles.files import ModelFiles, locate

F16, Q8_0 = 1, 8


def plan(native: bool, **options: str) -> dict[str, str]:
    resolved = resolve(EngineConfig(**options), HARDWARE, FACTS, "tiny")  # type: ignore[arg-type]
    return dict(memory_plan(resolved, FACTS, {"F32": MIB, "Q4_1": 8 * MIB, "Q8_0": 16 * MIB}, native))


def test_native_kernels_keep_weights_packed() -> None:
    assert plan(True)["weights"] == "24 MiB: 1.0 M F32, 8.4 M Q4_1, 16.8 M Q8_0, packed"
    assert plan(False)["weights"] == "50 MiB: 1.0 M F32, 8.4 M Q4_1, 16.8 M Q8_0, as bfloat16"
    assert plan(False, dtype="float32")["weights"].startswith("100 MiB")


@pytest.mark.parametrize(
    ("options", "nbytes"), [({}, 256), ({"dtype": "float32"}, 512), ({"kv_cache_dtype": "int8"}, 160)]
)
def test_pages(options: dict[str, str], nbytes: int) -> None:
    """Two layers, two KV heads of 16; int8 pages have a scale for each head and position."""
    found = plan(True, **options)
    assert found["KV per token"].startswith(f"{nbytes / 1024:,.1f} KiB")
    given = plan(True, kv_cache_memory="1MiB", **options)
    assert given["KV pages"] == f"1 MiB, {MIB // (16 * nbytes) * 16:,} tokens: as given"
    assert given["fits"].startswith("yes, if the largest step does")
    assert "at most 224 MiB" in found["KV pages"] and "--kv-cache-memory sets it" in found["KV pages"]
    assert plan(True, kv_cache_memory="1KiB", **options)["fits"].startswith("no: --kv-cache-memory")


def test_numbers_by_type(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tensors = [tensor("a", [32, 2], Q8_0, 0), tensor("b", [3, 5], F16, 96), tensor("c", [2], F16, 128)]
    path.write_bytes(File(tensors=tensors, data=bytes(132)).build())
    resolved = resolve(EngineConfig(), HARDWARE, FACTS, "tiny")
    assert count_weights(locate(path), FACTS, resolved) == {"Q8_0": 64, "F16": 17}


def test_on_a_gpu_the_choice_of_attention_is_shown_with_reasons() -> None:
    resolved = msgspec.structs.replace(resolve(EngineConfig(), HARDWARE, FACTS, "tiny"), device="cuda:0")
    table, chosen = kernel_choices(resolved, FACTS)
    names, said = ([str(cell) for cell in column.cells] for column in table.columns)
    attention = {name: text for name, text in zip(names, said, strict=True) if name.startswith("attention, ")}
    assert list(attention) == ["attention, flashinfer", "attention, triton", "attention, torch"]
    assert sum(text.startswith("chosen: ") for text in attention.values()) == 1
    assert chosen in (None, "triton"), "the CPU's kernels are not for a GPU"
    table, _ = kernel_choices(resolve(EngineConfig(), HARDWARE, FACTS, "tiny"), FACTS)
    assert not any("attention" in str(cell) for cell in table.columns[0].cells)


BIG = replace(
    FACTS, layers=layers(16, 32, 8, 64, 8192), hidden_size=2048,
    vocab_size=128256, max_position=131072,
)  # fmt: skip
"""The shape of Llama-3.2-1B."""


def gpu_plan(gpu: Gpu = H200, facts: ModelFacts = BIG, **options: Any) -> dict[str, str]:
    resolved = resolve(EngineConfig(**options), replace(HARDWARE, cuda=cuda(gpu)), facts, "big")
    return dict(memory_plan(resolved, facts, {"BF16": 1_235_814_400}, True, gpu))


def test_gpus_in_the_hardware_table() -> None:
    rows = dict(hardware_rows(ON_GPUS))
    assert rows["cuda:0"] == "NVIDIA H200, compute capability 9.0, 142,336 MiB free of 143,360"
    assert rows["cuda:1"].startswith("NVIDIA L4, compute capability 8.9")
    assert rows["cuda"] == "up to 13.0 by the driver; installed: PyTorch for CUDA 13.0, Triton"
    assert dict(hardware_rows(HARDWARE))["gpu"] == "none: none was looked for"
    lost = replace(L4, problem="GPU is lost")
    incomplete = replace(cuda(lost), driver=None, torch=None, has_triton=False)
    rows = dict(hardware_rows(replace(HARDWARE, cuda=incomplete)))
    assert rows["cuda:0"] == "NVIDIA L4: GPU is lost"
    assert rows["cuda"] == "not known by the driver; installed: PyTorch without CUDA, no Triton"


def test_the_plan_of_a_gpu_adds_up_and_says_what_it_holds() -> None:
    found = gpu_plan()
    assert found["weights"].startswith("2,357 MiB")
    assert found["KV per token"] == "32.0 KiB; one page holds 16 tokens of bfloat16"
    assert found["taken already"].startswith("1,024 MiB")
    assert found["fits"] == "yes, by these estimates"
    parts = ["weights", "taken already", "CUDA and tables", "largest step", "graphs", "KV pages"]
    taken = {part: int(found[part].removeprefix("about ").split()[0].replace(",", "")) for part in parts}
    assert sum(taken.values()) == pytest.approx(0.9 * 140 * 1024, abs=4), "in MiB: all that may be used is"
    tokens = int(found["KV pages"].split(": ")[1].split()[0].replace(",", ""))
    assert tokens == pytest.approx(taken["KV pages"] * 32, rel=0.001)
    assert f"{tokens / 131072:,.1f} sequences of max_model_len" in found["KV pages"]
    assert "estimated; measured at start" in found["largest step"] and "estimated" in found["graphs"]


def test_the_plan_follows_the_options() -> None:
    assert gpu_plan(kv_cache_dtype="fp8")["KV per token"].startswith("16.0 KiB")
    assert gpu_plan(enforce_eager=True)["graphs"] == "none: --enforce-eager"
    given = gpu_plan(kv_cache_memory="8GiB")["KV pages"]
    assert given.startswith("about 8,192 MiB: 262,128 tokens"), "a page is the padding's"
    few = gpu_plan(max_num_seqs=2, max_model_len=1024)["KV pages"]
    assert few.startswith("about 64 MiB: 2,048 tokens, 2.0 sequences of max_model_len; at most 2 run at once")


def test_what_does_not_fit_says_what_to_change() -> None:
    full = replace(H200, memory_free=8 * GIB)
    found = gpu_plan(full)
    assert "KV pages" not in found
    assert found["fits"].startswith(
        "no: KV pages for one sequence of max_model_len 131072 take 4096 MiB, and 0 are left"
    )
    assert found["fits"].endswith("raise --gpu-memory-utilization, or end other processes on the GPU")
    small = gpu_plan(replace(H200, memory_total=7 * GIB, memory_free=7 * GIB))["fits"]
    assert "lower --max-model-len to " in small and "other processes on" not in small


def test_random_weights_are_counted_by_the_shape() -> None:
    resolved = resolve(EngineConfig(load_format="dummy"), HARDWARE, BIG, "big")
    (found,) = count_weights(ModelFiles("big", Path("nowhere")), BIG, resolved).items()
    assert found == ("random", 1_235_746_816)


def test_a_gpu_that_is_not_there_is_told_before_a_model_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "detect", lambda: HARDWARE)
    monkeypatch.setattr(doctor, "fetch_with_progress", lambda config: pytest.fail("fetched"))
    with pytest.raises(ConfigError, match="--device cuda: there is no GPU"):
        doctor.run_doctor(EngineConfig(device="cuda"))


def test_all_of_it_for_a_gpu_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is asked of the GPU itself: whoever reads this may be about to buy one."""
    (tmp_path / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, '
        '"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512, '
        '"rms_norm_eps": 1e-5}'
    )
    monkeypatch.setattr(doctor, "detect", lambda: ON_GPUS)
    doctor.run_doctor(EngineConfig(model=str(tmp_path), load_format="dummy"))
    said = capsys.readouterr().out
    for part in ("cuda:1", "device cuda:0", "attention, triton", "random", "taken already", "fits"):
        assert part in said
