"""resolve(): what options become on given hardware, with reasons; contradictions are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.config.engine import EngineConfig
from octavo.config.hardware import Hardware, detect, usable_cores
from octavo.config.resolve import parse_bytes, resolve
from octavo.errors import ConfigError
from octavo.modelfiles.facts import ModelFacts, RopeFacts

HARDWARE = Hardware("a cpu", 2, 8 << 30, 6 << 30, frozenset())
FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    num_layers=2,
    hidden_size=64,
    intermediate_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=256,
    max_position=512,
    norm_eps=1e-5,
    rope=RopeFacts(rotary_dim=16),
    tie_embeddings=True,
)


def test_defaults_have_reasons() -> None:
    resolved = resolve(EngineConfig(), HARDWARE, FACTS, "tiny")
    assert (resolved.device, resolved.dtype, resolved.max_model_len, resolved.threads) == ("cpu", "bfloat16", 512, 2)
    assert resolved.served_model_name == "tiny"
    assert resolved.kv_cache_dtype == "bfloat16"
    assert resolved.memory_budget == (6 << 30) - (512 << 20)
    assert {r.split(":")[0].split()[0] for r in resolved.reasons} == {"device", "dtype", "max_model_len", "memory"}


def test_pages_have_the_dtype_or_int8() -> None:
    assert resolve(EngineConfig(dtype="float32"), HARDWARE, FACTS, "tiny").kv_cache_dtype == "float32"
    assert resolve(EngineConfig(kv_cache_dtype="int8"), HARDWARE, FACTS, "tiny").kv_cache_dtype == "int8"


@pytest.mark.parametrize(
    "given,needle",
    [
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ({"isq": "q4k"}, "--isq q4k"),
        ({"gpu_memory_utilization": 0.5}, "--gpu-memory-utilization"),
        ({"device": "cuda"}, "--device cuda"),
        ({"max_model_len": 513}, "--max-model-len 513"),
        ({"block_size": 24}, "--block-size 24"),
        ({"kv_cache_memory": "lots"}, "--kv-cache-memory: 'lots'"),
    ],
)
def test_refusals_name_option_and_value(given: dict[str, Any], needle: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(EngineConfig(**given), HARDWARE, FACTS, "tiny")
    assert needle in caught.value.message


@pytest.mark.parametrize(
    "text,size",
    [("512MiB", 512 << 20), ("4GiB", 4 << 30), ("1.5 kb", 1500), ("2GB", 2 * 10**9), ("77", 77), ("64kib", 65536)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text, "--x") == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "0", "1e400", "nan", "4 elephants", "1_0MiBs"])
def test_sizes_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--x"):
        parse_bytes(text, "--x")


def test_this_machine() -> None:
    hardware = detect()
    assert 1 <= hardware.cores == usable_cores()
    assert 0 < hardware.memory_available <= hardware.memory_total


@pytest.mark.parametrize("name", ["flashinfer", "triton", "torch"])
def test_attention_has_a_choice_on_a_gpu_only(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--attention-backend {name} is for a GPU: .* leave it out"):
        resolve(EngineConfig(attention_backend=name), HARDWARE, FACTS, "tiny")  # type: ignore[arg-type]
    assert resolve(EngineConfig(), HARDWARE, FACTS, "tiny").attention_backend == "auto"


def test_random_weights_are_told() -> None:
    assert resolve(EngineConfig(), HARDWARE, FACTS, "tiny").load_format == "auto"
    resolved = resolve(EngineConfig(load_format="dummy"), HARDWARE, FACTS, "tiny")
    assert resolved.load_format == "dummy" and any("random weights" in reason for reason in resolved.reasons)
