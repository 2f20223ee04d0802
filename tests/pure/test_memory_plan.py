"""A GPU's memory: what pages get is what everything else leaves, and what does not fit is one line that helps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_resolve import FACTS, ON_GPUS, layers

from octavo.config.engine import EngineConfig
from octavo.config.memory import MIB, GroupSize, MemoryUse, estimate, plan_blocks
from octavo.config.resolve import ResolvedConfig, resolve
from octavo.errors import OutOfMemory
from octavo.modelfiles.facts import ModelFacts

PAGE = MIB
USE = MemoryUse(
    total=1000 * MIB,
    free=600 * MIB,
    weights=300 * MIB,
    activations=50 * MIB,
    graphs=20 * MIB,
    groups=(GroupSize(PAGE),),
)
LLAMA_1B = replace(
    FACTS, layers=layers(16, 32, 8, 64, 8192), hidden_size=2048,
    vocab_size=128256,
)  # fmt: skip


def resolved(facts: ModelFacts = FACTS, **options: Any) -> ResolvedConfig:
    return resolve(EngineConfig(**options), ON_GPUS, facts, "tiny")


def test_pages_get_what_everything_else_leaves() -> None:
    plan = plan_blocks(resolved(), USE)
    # 900 may be used: 300 weights, 100 of others, 50 for a step, 20 for graphs; one page is the padding's.
    assert plan.blocks == (429,) and plan.kv_bytes == 430 * MIB
    assert plan.notes() == [
        "of 1000 MiB on the GPU: weights 300 MiB, other processes and CUDA 100, graphs 20, the largest step 50, "
        "KV pages 430; 100 are left free"
    ]


def test_another_process_is_counted() -> None:
    assert plan_blocks(resolved(), replace(USE, free=400 * MIB)).blocks == (229,)


def test_no_more_than_requests_can_have() -> None:
    assert plan_blocks(resolved(max_num_seqs=2, max_model_len=128), USE).blocks == (2 * 8,)


def test_the_number_given_wins() -> None:
    """Also over the share of the memory that may be used."""
    assert plan_blocks(resolved(kv_cache_memory="100MiB"), USE).blocks == (99,)
    assert plan_blocks(resolved(kv_cache_memory="100MiB", gpu_memory_utilization=0.1), USE).blocks == (99,)
    assert plan_blocks(resolved(kv_cache_memory="530MiB"), USE).kv_bytes == 530 * MIB
    with pytest.raises(OutOfMemory, match=r"^531 MiB of KV pages do not fit the GPU's 1000 MiB: .*to 530MiB$"):
        plan_blocks(resolved(kv_cache_memory="531MiB"), USE)
    with pytest.raises(OutOfMemory, match=r"^--kv-cache-memory 32MiB holds 496 tokens.*needs 32MiB; raise"):
        plan_blocks(resolved(kv_cache_memory="32MiB"), USE)


def refused(use: MemoryUse, **options: Any) -> str:
    with pytest.raises(OutOfMemory) as caught:
        plan_blocks(resolved(**options), use)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_what_does_not_fit_says_what_takes_how_much_and_what_to_change() -> None:
    tight = replace(USE, weights=700 * MIB, free=200 * MIB)  # leaves 30 MiB, and one sequence takes 33
    assert refused(tight) == (
        "KV pages for one sequence of max_model_len 512 take 33 MiB, and 30 are left of the GPU's 1000 MiB with "
        "--gpu-memory-utilization 0.9: weights 700 MiB, other processes and CUDA 100, graphs 20, the largest step 50; "
        "lower --max-model-len to 464, raise --gpu-memory-utilization, or lower --max-num-batched-tokens"
    )
    assert plan_blocks(resolved(max_model_len=464), tight).blocks == (29,), "the advice holds"
    assert refused(replace(tight, free=150 * MIB)).count("take a smaller or a quantized model") == 1
    assert "raise --gpu" not in refused(replace(tight, free=100 * MIB), gpu_memory_utilization=0.98)
    assert "give --enforce-eager" in refused(replace(tight, graphs=100 * MIB))
    assert refused(replace(USE, free=0, weights=10, activations=0), gpu_memory_utilization=1.0).endswith(
        "; take a smaller model"
    )


def test_others_are_only_blamed_when_there_must_be_some() -> None:
    large = replace(USE, total=100_000 * MIB, free=1000 * MIB, weights=5000 * MIB)
    assert refused(large).endswith("end other processes on the GPU")
    assert "end other" not in refused(replace(USE, total=4000 * MIB, free=200 * MIB, weights=2000 * MIB))


sizes = st.integers(0, 1 << 40)


@given(total=sizes, free=sizes, weights=sizes, activations=sizes, graphs=sizes, share=st.floats(0.01, 1.0))
def test_never_more_than_may_be_used(
    total: int, free: int, weights: int, activations: int, graphs: int, share: float
) -> None:
    use = MemoryUse(total, min(free, total), weights, activations, graphs, (GroupSize(PAGE),))
    config = resolved(gpu_memory_utilization=share)
    try:
        plan = plan_blocks(config, use)
    except OutOfMemory as error:
        assert "\n" not in error.message and "; " in error.message
        return
    assert 32 <= plan.blocks[0] <= 32 * 256
    assert plan.kv_bytes + activations + graphs + (total - use.free) <= share * total
    assert plan.kv_bytes <= use.free


def test_the_estimate_grows_with_what_it_is_made_of() -> None:
    base = estimate(LLAMA_1B, resolved())
    assert base.activations == 8192 * (2 * 4 * 2048 + 2 * (2048 + 3 * 8192)) + 4 * 4 * 128256 * 256 + 64 * MIB
    assert estimate(LLAMA_1B, resolved(max_num_batched_tokens=512)).activations < base.activations
    assert estimate(LLAMA_1B, resolved(dtype="float32")).activations > base.activations
    assert estimate(LLAMA_1B, resolved(enforce_eager=True)).graphs == 0 < base.graphs
    fewer = estimate(LLAMA_1B, resolved(max_num_seqs=8))
    assert fewer.graphs < base.graphs and fewer.tables < base.tables


def test_weights_of_a_shape() -> None:
    assert LLAMA_1B.num_weights() == 1_235_746_816
    assert replace(LLAMA_1B, tie_embeddings=False).num_weights() == 1_235_746_816 + 128256 * 2048
