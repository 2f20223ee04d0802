"""The Llama family against Transformers on tiny random models: same logits in f32, from safetensors and from GGUF,
through the paged path, whole, in chunks and in batches."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, Paged, make_reference, save_gguf, save_safetensors
from torch import Tensor

from octavo.errors import ModelFileError
from octavo.layers.rope import cos_sin_table, inverse_frequencies
from octavo.modelfiles.facts import RopeFacts

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "linear-rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "odd-heads": ("llama", {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 12}),
    "no-grouping": ("llama", {"num_key_value_heads": 4}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 11}),
    "head-dim": ("mistral", {"head_dim": 16, "sliding_window": 500}),
}
GGUF_VARIANTS = ["llama", "tied", "biases", "linear-rope", "odd-heads", "no-grouping"]


def random_ids(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=length)


@torch.no_grad()
def expected(model: Any, token_ids: list[int]) -> Tensor:
    return model(torch.tensor([token_ids])).logits[0]


def agree(found: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    assert found.dtype == torch.float32
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance


@pytest.mark.parametrize("variant", VARIANTS)
def test_safetensors_logits(variant: str, tmp_path: Path) -> None:
    kind, changes = VARIANTS[variant]
    reference = make_reference(kind, **changes)
    paged = Paged.load(save_safetensors(reference, tmp_path))
    ids = random_ids(77)
    wanted = expected(reference, ids)
    agree(paged.whole(ids), wanted)
    agree(paged.whole(ids, [1, 9, 30, 8, 1, 1, 27]), wanted)


@pytest.mark.parametrize("variant", GGUF_VARIANTS)
def test_gguf_logits(variant: str, tmp_path: Path) -> None:
    kind, changes = VARIANTS[variant]
    reference = make_reference(kind, **changes)
    paged = Paged.load(save_gguf(reference, tmp_path / "tiny.gguf"))
    ids = random_ids(50)
    agree(paged.whole(ids, [20, 30]), expected(reference, ids))


def test_gguf_rope_factors_mean_llama3_scaling(tmp_path: Path) -> None:
    reference = make_reference(rope_parameters=LLAMA3)
    plain = inverse_frequencies(RopeFacts(theta=500.0, rotary_dim=8))
    scaled = reference.model.rotary_emb.inv_freq
    assert not torch.allclose(plain, scaled)
    paged = Paged.load(save_gguf(reference, tmp_path / "tiny.gguf", rope_freqs=plain / scaled))
    ids = random_ids(100)
    agree(paged.whole(ids), expected(reference, ids))


@pytest.mark.parametrize("variant", ["llama", "mistral-window"])
def test_batched_rows_equal_rows_alone(variant: str, tmp_path: Path) -> None:
    """Rows of many lengths, prefills beside decodes, rows joining and leaving."""
    kind, changes = VARIANTS[variant]
    reference = make_reference(kind, **changes)
    paged = Paged.load(save_safetensors(reference, tmp_path))
    rows = {row: random_ids(length, row) for row, length in enumerate([3, 64, 1, 17, 128, 9, 40, 8])}
    for row, ids in rows.items():
        paged.admit(row, ids)
    found: dict[int, list[Tensor]] = {row: [] for row in rows}
    draw = random.Random(5)
    left = {row: len(ids) for row, ids in rows.items()}
    while any(left.values()):
        going = [row for row in left if left[row] and draw.random() < 0.8]
        lengths = {row: min(left[row], draw.choice([1, 1, 2, 13])) for row in going}
        if not lengths:
            continue
        for row, logits in paged.run(lengths).items():
            found[row].append(logits)
            left[row] -= len(logits)
    for row, ids in rows.items():
        agree(torch.cat(found[row]), expected(reference, ids))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neither_chunks_nor_company_change_a_bit(dtype: str, tmp_path: Path) -> None:
    reference = make_reference(num_key_value_heads=1, hidden_size=96, num_attention_heads=3, intermediate_size=192)
    paged = Paged.load(save_safetensors(reference, tmp_path), dtype)
    rows = {row: random_ids(length, row) for row, length in enumerate([100, 3, 37, 64])}
    alone = {row: paged.whole(ids) for row, ids in rows.items()}
    assert torch.equal(paged.whole(rows[0], [1] * 100), alone[0])
    assert torch.equal(paged.whole(rows[0], [2, 3, 5, 7, 11, 13, 17, 19, 23]), alone[0])
    paged.batch.release(0)
    for row, ids in rows.items():
        paged.admit(row, ids)
    found: dict[int, list[Tensor]] = {row: [] for row in rows}
    for step in range(100):
        lengths = {
            row: 1 if row == 0 else 3 for row in rows if sum(map(len, found[row])) < len(rows[row]) and step >= row
        }
        lengths = {row: min(n, len(rows[row]) - sum(map(len, found[row]))) for row, n in lengths.items()}
        for row, logits in paged.run(lengths).items():
            found[row].append(logits)
    for row, logits in alone.items():
        assert torch.equal(torch.cat(found[row]), logits)


def test_bfloat16_is_near(tmp_path: Path) -> None:
    reference = make_reference(initializer_range=0.1)
    ids = random_ids(60)
    found = Paged.load(save_safetensors(reference, tmp_path), "bfloat16").whole(ids)
    wanted = expected(reference, ids)
    assert (found - wanted).abs().mean() < 0.02 * wanted.abs().mean() + 0.01


def test_leftover_tensor_is_refused(tmp_path: Path) -> None:
    files = save_gguf(make_reference(), tmp_path / "tiny.gguf", rope_freqs=None)
    Paged.load(files)
    reference = make_reference()
    reference.model.layers[1].register_parameter("extra", torch.nn.Parameter(torch.ones(4)))
    with pytest.raises(ModelFileError, match=r"model\.layers\.1\.extra"):
        Paged.load(save_safetensors(reference, tmp_path / "left"))


def test_stored_frequencies_are_ignored(tmp_path: Path) -> None:
    reference = make_reference()
    attention = reference.model.layers[0].self_attn
    attention.rotary_emb = torch.nn.Module()
    attention.rotary_emb.register_parameter("inv_freq", torch.nn.Parameter(torch.ones(4)))
    Paged.load(save_safetensors(reference, tmp_path))


def test_misshapen_and_missing_tensors_are_refused(tmp_path: Path) -> None:
    reference = make_reference()
    reference.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.ones(32, 47))
    with pytest.raises(ModelFileError, match=r"layers\.0\.mlp\.down_proj\.weight.*\[32, 47\].*\[32, 48\]"):
        Paged.load(save_safetensors(reference, tmp_path / "shape"))
    reference = make_reference()
    del reference.model.layers[1].input_layernorm.weight
    with pytest.raises(ModelFileError, match=r"layers\.1\.input_layernorm\.weight.*missing"):
        Paged.load(save_safetensors(reference, tmp_path / "missing"))


def test_unknown_architecture_names_the_known(tmp_path: Path) -> None:
    reference = make_reference()
    files = save_safetensors(reference, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "HyenaForCausalLM"))
    with pytest.raises(ModelFileError, match=r"HyenaForCausalLM.*LlamaForCausalLM, MistralForCausalLM"):
        Paged.load(files)


def test_rotary_table() -> None:
    table = cos_sin_table(RopeFacts(theta=100.0, rotary_dim=4), 3)
    assert table.shape == (3, 4)
    angles = [2.0, 2.0 / 10.0]
    wanted = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    assert torch.allclose(table[2], wanted, atol=1e-6)
