"""The memory plan of `octavo doctor`: from headers and options alone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from gguf_bytes import File, tensor
from test_resolve import FACTS, HARDWARE

from octavo.cli.doctor import MIB, count_weights, kernel_choices, memory_plan
from octavo.config.engine import EngineConfig
from octavo.config.resolve import resolve
from octavo.modelfiles.files import locate

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
    assert given["KV pages"] == f"1 MiB as given: {MIB / nbytes:,.0f} tokens"
    assert given["fits"] == "yes"


def test_numbers_by_type(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tensors = [tensor("a", [32, 2], Q8_0, 0), tensor("b", [3, 5], F16, 96), tensor("c", [2], F16, 128)]
    path.write_bytes(File(tensors=tensors, data=bytes(132)).build())
    assert count_weights(locate(path), FACTS, resolve(EngineConfig(), HARDWARE, FACTS, "tiny")) == {"Q8_0": 64, "F16": 17}


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
