"""Qwen2 and Qwen3 against Transformers on tiny random models: logits from safetensors and from GGUF, greedy tokens
through the worker, quantized files; and what is refused. Recorded steps: test_native.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from parity import greedy_side_by_side, whole_and_in_chunks
from test_llama import agree, expected, random_ids
from test_mixed_formats import HEADS, HIDDEN, KV_HEADS, VOCAB, blocks, shapes_of
from test_worker import BACKENDS
from tiny_models import Paged, make_reference, save_gguf, save_safetensors

from octavo.errors import ModelFileError
from octavo.kernels import registry
from octavo.kernels.registry import Spec
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import ModelFiles, locate

ROPE = {"rope_type": "default", "rope_theta": 1e6}
WINDOW = {"use_sliding_window": True, "sliding_window": 11}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"rope_parameters": ROPE}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "sliding_window": 11}),
    "qwen2-late-window": ("qwen2", {**WINDOW, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16, "rope_parameters": ROPE, "sliding_window": 11}),
    "qwen3-tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True, "rms_norm_eps": 0.1}),
    "qwen3-biases": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "qwen3-odd-heads": ("qwen3", {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 12}),
    "qwen3-wide-heads": ("qwen3", {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen3-window": ("qwen3", {"head_dim": 16, **WINDOW, "max_window_layers": 0}),
    "qwen3-windows-by-layer": (
        "qwen3", {"head_dim": 16, **WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}  # fmt: skip
GGUF_VARIANTS = [name for name, (_, changes) in VARIANTS.items() if not changes.get("use_sliding_window")]
NATIVE = pytest.param("cpu", marks=pytest.mark.skipif("cpu" not in BACKENDS, reason="the native kernels are not built"))


def make(variant: str) -> Any:
    kind, changes = VARIANTS[variant]
    return make_reference(kind, **changes)


@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("variant", VARIANTS)
def test_safetensors_logits(variant: str, backend: str, tmp_path: Path) -> None:
    reference, ops = make(variant), registry.choose(Spec("cpu", "float32"), backend)
    whole_and_in_chunks(Paged.load(save_safetensors(reference, tmp_path), ops=ops), reference)


@pytest.mark.parametrize("variant", GGUF_VARIANTS)
def test_gguf_logits(variant: str, tmp_path: Path) -> None:
    reference, ids = make(variant), random_ids(50)
    files = save_gguf(reference, tmp_path / "tiny.gguf")
    assert read_facts(files).architecture == VARIANTS[variant][0]
    agree(Paged.load(files).whole(ids, [20, 30]), expected(reference, ids))


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("variant", ["qwen2", "qwen3", "qwen3-tied"])
def test_greedy_tokens_are_those_of_transformers(
    variant: str, backend: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in chunks beside decodes, through the worker: on the CPU one recorded call a step."""
    monkeypatch.setenv("OCTAVO_BACKEND", backend)
    reference = make(variant)
    files = save_gguf(reference, tmp_path / "m.gguf") if form == "gguf" else save_safetensors(reference, tmp_path)
    greedy_side_by_side(files, reference, 28)


@pytest.mark.parametrize("variant", ["qwen2", "qwen3"])
@pytest.mark.parametrize("backend", ["reference", NATIVE])
def test_bfloat16_is_near(variant: str, backend: str, tmp_path: Path) -> None:
    """No farther from f32 than twice what Transformers is in bf16."""
    kind, changes = VARIANTS[variant]
    reference, ids = make_reference(kind, **changes, num_hidden_layers=4), random_ids(60)
    files = save_safetensors(reference, tmp_path)
    wanted = expected(reference, ids)
    theirs = (expected(reference.bfloat16(), ids).float() - wanted).norm()
    found = Paged.load(files, "bfloat16", ops=registry.choose(Spec("cpu", "bfloat16"), backend)).whole(ids)
    assert (found - wanted).norm() <= 2 * theirs
    assert 0 < theirs < 0.2 * wanted.norm()


# --- quantized files

HEAD_DIM = 128


def write_quantized(path: Path, kind: str, dense: bool) -> ModelFiles:
    """One layer of Qwen3, its matrices as blocks or dequantized by the gguf package."""
    random, number = np.random.default_rng(1), GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(512)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    for name, shape in shapes_of(HEAD_DIM).items():
        data = blocks(kind, shape, random)
        if dense:
            writer.add_tensor(f"{name}.weight", gguf.quants.dequantize(data, number))
        else:
            writer.add_tensor(f"{name}.weight", data, raw_dtype=number)
    for name, size in (
        *((name, HIDDEN) for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")),
        *((name, HEAD_DIM) for name in ("blk.0.attn_q_norm", "blk.0.attn_k_norm")),
    ):
        writer.add_tensor(f"{name}.weight", random.uniform(0.5, 1.5, size).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return locate(path)


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0"])
def test_quantized_files_equal_their_dequantized_weights(kind: str, tmp_path: Path) -> None:
    ids = [n % VOCAB for n in random_ids(40)]
    quantized = write_quantized(tmp_path / "quantized.gguf", kind, dense=False)
    wanted = Paged.load(write_quantized(tmp_path / "dense.gguf", kind, dense=True), max_model_len=64).whole(ids)
    assert wanted.std() > 0.01
    assert torch.equal(Paged.load(quantized, max_model_len=64).whole(ids), wanted)
    if "cpu" in BACKENDS:
        ops = registry.choose(Spec("cpu", "bfloat16", "float32"), "cpu")
        found = Paged.load(quantized, "bfloat16", max_model_len=64, ops=ops).whole(ids)
        assert (found - wanted).norm() <= 0.05 * wanted.norm()


# --- what is refused


def test_a_gguf_window_is_not_read(tmp_path: Path) -> None:
    """llama.cpp has no windows in this architecture, whatever the file says."""
    reference, ids = make_reference("qwen2"), random_ids(50)
    files = save_gguf(reference, tmp_path / "m.gguf", sliding_window=7)
    agree(Paged.load(files).whole(ids), expected(reference, ids))


def test_norms_and_biases_are_the_architectures(tmp_path: Path) -> None:
    """A file with one too few or too many means another model than its architecture."""
    for kind, message in (("qwen2", r"q_proj\.bias.*missing"), ("qwen3", r"q_norm\.weight.*missing")):
        files = save_safetensors(make_reference("llama", head_dim=8), tmp_path / kind)
        config = tmp_path / kind / "config.json"
        name = f"{kind.title()}ForCausalLM"
        config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": [name], "model_type": kind}))
        with pytest.raises(ModelFileError, match=message):
            Paged.load(files)
