"""resolve(): what options become on given hardware, with reasons; contradictions are refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_nvml import A10, GIB, H200, L4, P40, T4, cuda

from octavo.client.arguments import engine_config
from octavo.config.engine import EngineConfig
from octavo.config.flags import load
from octavo.config.hardware import Hardware, detect, usable_cores
from octavo.config.resolve import resolve
from octavo.config.sizes import parse_bytes
from octavo.errors import ConfigError
from octavo.modelfiles.facts import AttentionFacts, LayerFacts, MLPFacts, ModelFacts, RopeFacts

HARDWARE = Hardware("a cpu", 2, 8 << 30, 6 << 30, frozenset())
ON_GPUS = replace(HARDWARE, cuda=cuda(H200, L4))


def layers(count: int, heads: int, kv_heads: int, head_dim: int, inner_size: int) -> tuple[LayerFacts, ...]:
    """All alike."""
    attention = AttentionFacts(heads, kv_heads, head_dim, RopeFacts(rotary_dim=head_dim), head_dim**-0.5)
    return (LayerFacts(attention, MLPFacts(inner_size)),) * count


FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    layers=layers(2, 4, 2, 16, 128),
    hidden_size=64,
    vocab_size=256,
    max_position=512,
    norm_eps=1e-5,
    tie_embeddings=True,
)


def test_a_model_may_have_several_names() -> None:
    (config,) = load((EngineConfig,), {"served_model_name": ["a,b", "c", "a"]}, None, {})
    resolved = resolve(config, HARDWARE, FACTS, "tiny")
    assert (resolved.served_model_name, resolved.model_aliases) == ("a", ("b", "c"))
    one: Any = "a,b"
    resolved = resolve(EngineConfig(served_model_name=one), HARDWARE, FACTS, "tiny")
    assert (resolved.served_model_name, resolved.model_aliases) == ("a,b", ())
    assert engine_config("x", {"served_model_name": "n"}).served_model_name == ("n",)


def test_defaults_have_reasons() -> None:
    resolved = resolve(EngineConfig(), HARDWARE, FACTS, "tiny")
    assert (resolved.device, resolved.dtype, resolved.max_model_len, resolved.threads) == ("cpu", "bfloat16", 512, 2)
    assert resolved.served_model_name == "tiny"
    assert resolved.kv_cache_dtype == "bfloat16"
    assert (resolved.max_num_seqs, resolved.max_num_batched_tokens) == (64, 512)
    assert resolved.memory_budget == (6 << 30) - (512 << 20)
    assert {r.split(":")[0].split()[0] for r in resolved.reasons} == {"device", "dtype", "max_model_len", "memory"}


@pytest.mark.parametrize("hardware", [HARDWARE, ON_GPUS], ids=["cpu", "gpu"])
def test_auto_is_what_the_file_is_stored_in(hardware: Hardware) -> None:
    for dtype in ("float32", "float16", "bfloat16"):
        resolved = resolve(EngineConfig(), hardware, replace(FACTS, dtype=dtype), "tiny")
        assert resolved.dtype == resolved.kv_cache_dtype == dtype
        (reason,) = [reason for reason in resolved.reasons if reason.startswith(f"dtype {dtype}: ")]
        assert "--dtype auto" in reason
        assert resolve(EngineConfig(dtype="bfloat16"), hardware, replace(FACTS, dtype=dtype), "x").dtype == "bfloat16"
    assert resolve(EngineConfig(dtype="float16", device="cpu"), hardware, FACTS, "tiny").dtype == "float16"


def test_float32_weights_that_would_not_fit_are_rounded() -> None:
    facts = replace(FACTS, dtype="float32", layers=layers(50, 4, 2, 16, 8192), hidden_size=4096)
    resolved = resolve(EngineConfig(), HARDWARE, facts, "big")
    assert resolved.dtype == "bfloat16"
    assert any("the file's float32 would take 19354 of 8192 MiB (--dtype auto)" in why for why in resolved.reasons)
    busy = replace(HARDWARE, memory_available=1 << 20)  # passes: an engine that starts again decides the same
    assert resolve(EngineConfig(), busy, replace(FACTS, dtype="float32"), "x").dtype == "float32"
    assert resolve(EngineConfig(dtype="float32"), HARDWARE, facts, "big").dtype == "float32"


def test_pages_have_the_dtype_or_int8() -> None:
    assert resolve(EngineConfig(dtype="float32"), HARDWARE, FACTS, "tiny").kv_cache_dtype == "float32"
    assert resolve(EngineConfig(kv_cache_dtype="int8"), HARDWARE, FACTS, "tiny").kv_cache_dtype == "int8"


@pytest.mark.parametrize(
    "given,needle",
    [
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8"),
        ({"isq": "q4k"}, "--isq q4k"),
        ({"gpu_memory_utilization": 0.5}, "--gpu-memory-utilization"),
        ({"enforce_eager": True}, "--enforce-eager is for a GPU"),
        ({"device": "cuda"}, "--device cuda: there is no GPU: none was looked for"),
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
    with pytest.raises(ConfigError, match=f"--attention-backend {name} is for a GPU, .* leave it out"):
        resolve(EngineConfig(attention_backend=name), HARDWARE, FACTS, "tiny")  # type: ignore[arg-type]
    assert resolve(EngineConfig(), HARDWARE, FACTS, "tiny").attention_backend == "auto"


def test_random_weights_are_told() -> None:
    assert resolve(EngineConfig(), HARDWARE, FACTS, "tiny").load_format == "auto"
    resolved = resolve(EngineConfig(load_format="dummy"), HARDWARE, FACTS, "tiny")
    assert resolved.load_format == "dummy" and any("random weights" in reason for reason in resolved.reasons)


def test_a_gpu_is_taken_when_it_can_be_used() -> None:
    resolved = resolve(EngineConfig(), ON_GPUS, FACTS, "tiny")
    assert (resolved.device, resolved.dtype, resolved.kv_cache_dtype) == ("cuda:0", "bfloat16", "bfloat16")
    assert (resolved.max_num_seqs, resolved.max_num_batched_tokens) == (256, 8192)
    assert (resolved.async_scheduling, resolved.enforce_eager, resolved.gpu_memory_utilization) == (True, False, 0.9)
    assert resolved.memory_budget == int(0.9 * 140 * GIB) - GIB
    assert resolved.reasons[0] == (
        "device cuda:0: NVIDIA H200, compute capability 9.0, 143360 MiB, 1024 MiB of them taken"
    )


@pytest.mark.parametrize(("asked", "device"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_device_that_is_asked_for(asked: str, device: str) -> None:
    resolved = resolve(EngineConfig(device=asked), ON_GPUS, FACTS, "tiny")
    assert resolved.device == device
    assert resolved.reasons[0].startswith(f"device {device}: ")
    assert resolved.max_num_seqs == (64 if device == "cpu" else 256)


def test_auto_says_why_it_is_not_the_gpu_and_a_device_asked_for_is_an_error() -> None:
    hardware = replace(HARDWARE, cuda=replace(cuda(H200), torch=None))
    resolved = resolve(EngineConfig(), hardware, FACTS, "tiny")
    assert resolved.device == "cpu"
    assert "2 cores this process may use; PyTorch is installed without CUDA" in resolved.reasons[0]
    with pytest.raises(
        ConfigError, match=r"is for a GPU, and the device is the CPU \(PyTorch is installed without CUDA"
    ):
        resolve(EngineConfig(enforce_eager=True), hardware, FACTS, "tiny")
    with pytest.raises(ConfigError, match="is for a GPU, and the device is the CPU, where"):
        resolve(EngineConfig(enforce_eager=True, device="cpu"), ON_GPUS, FACTS, "tiny")
    with pytest.raises(ConfigError, match="--device cuda:0: PyTorch is installed without CUDA: install it for CUDA"):
        resolve(EngineConfig(device="cuda:0"), hardware, FACTS, "tiny")
    with pytest.raises(
        ConfigError, match=r"--device cuda:2: .* there are cuda:0 \(NVIDIA H200\), cuda:1 \(NVIDIA L4\)"
    ):
        resolve(EngineConfig(device="cuda:2"), ON_GPUS, FACTS, "tiny")
    assert resolve(EngineConfig(), replace(HARDWARE, cuda=cuda(P40)), FACTS, "tiny").device == "cpu"


def test_what_a_gpu_can_do_depends_on_its_age() -> None:
    old, middle = (replace(HARDWARE, cuda=cuda(gpu)) for gpu in (T4, A10))
    resolved = resolve(EngineConfig(), old, FACTS, "tiny")
    assert resolved.device == "cpu"
    assert any("Tesla T4 has compute capability 7.5, and 8.0 is needed" in reason for reason in resolved.reasons)
    with pytest.raises(ConfigError, match=r"--device cuda: Tesla T4 has compute capability 7.5, and 8.0 is needed"):
        resolve(EngineConfig(device="cuda"), old, FACTS, "tiny")
    with pytest.raises(ConfigError, match=r"--kv-cache-dtype fp8 needs compute capability 8.9, and NVIDIA A10 has"):
        resolve(EngineConfig(kv_cache_dtype="fp8"), middle, FACTS, "tiny")
    assert resolve(EngineConfig(kv_cache_dtype="fp8"), ON_GPUS, FACTS, "tiny").kv_cache_dtype == "fp8"
    with pytest.raises(ConfigError, match="--kv-cache-dtype int8 is for the CPU"):
        resolve(EngineConfig(kv_cache_dtype="int8"), ON_GPUS, FACTS, "tiny")


def test_options_of_a_gpu() -> None:
    config = EngineConfig(
        gpu_memory_utilization=0.5, attention_backend="triton", enforce_eager=True, async_scheduling=False,
        max_num_seqs=3, max_num_batched_tokens=100,
    )  # fmt: skip
    resolved = resolve(config, ON_GPUS, FACTS, "tiny")
    assert (resolved.gpu_memory_utilization, resolved.attention_backend) == (0.5, "triton")
    assert (resolved.enforce_eager, resolved.async_scheduling) == (True, False)
    assert (resolved.max_num_seqs, resolved.max_num_batched_tokens) == (3, 100)
    assert resolved.memory_budget == 70 * GIB - GIB
    full = replace(H200, memory_free=GIB)
    assert resolve(config, replace(HARDWARE, cuda=cuda(full)), FACTS, "tiny").memory_budget == 0
