"""Qwen2-MoE and Qwen3-MoE against Transformers on tiny random models: logits from safetensors (a matrix for each
expert) and from GGUF (all in one tensor, dense and quantized), alone, batched and in chunks, recorded and one
operation at a time; greedy tokens through the worker; which experts a token touches; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models
import torch
from gguf import GGMLQuantizationType
from parity import greedy_side_by_side, whole_and_in_chunks
from test_llama import agree, expected, random_ids
from test_native import RecordedPaged, loaded, native
from test_qwen import NATIVE
from test_worker import BACKENDS
from tiny_models import Paged, make_reference, save_safetensors

from octavo.errors import ModelFileError
from octavo.kernels import registry
from octavo.kernels.recorded import Runs
from octavo.kernels.registry import Spec
from octavo.modelfiles.facts import ExpertsFacts, read_facts
from octavo.modelfiles.files import ModelFiles, locate

EXPERTS, CHOSEN, INNER, SHARED = 6, 2, 32, 64
SIZES = {
    "num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "moe_intermediate_size": INNER,
    "shared_expert_intermediate_size": SHARED,
}  # fmt: skip
SLIDING = {"use_sliding_window": True, "sliding_window": 11, "num_hidden_layers": 3}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2_moe", {}),
    "qwen2-renormalized": ("qwen2_moe", {"norm_topk_prob": True, "tie_word_embeddings": True}),
    "qwen2-some-dense": ("qwen2_moe", {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    "qwen2-windows": ("qwen2_moe", {**SLIDING, "max_window_layers": 3}),
    "qwen2-without-biases": ("qwen2_moe", {"qkv_bias": False}),
    "qwen3": ("qwen3_moe", {"head_dim": 16, "norm_topk_prob": True}),
    "qwen3-as-they-are": ("qwen3_moe", {"tie_word_embeddings": True}),
    "qwen3-dense-first": ("qwen3_moe", {"mlp_only_layers": [0], "norm_topk_prob": True, "attention_bias": True}),
    "qwen3-window": ("qwen3_moe", {**SLIDING, "norm_topk_prob": True}),
    "qwen3-odd-experts": ("qwen3_moe", {"moe_intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 5}),
}


def make(variant: str) -> Any:
    kind, changes = VARIANTS[variant]
    return make_reference(kind, **{**SIZES, **changes})


PARTS = {
    **tiny_models._PARTS, "mlp.gate": "ffn_gate_inp", "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}  # fmt: skip


def save_gguf(model: Any, path: Path, experts: GGMLQuantizationType | None = None) -> ModelFiles:
    """As llama.cpp's converter does. `experts`: the type of their tensors; the model's become what that holds."""
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type.replace("_", ""))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)

    def add(name: str, data: torch.Tensor, quantized: bool = False) -> None:
        array = np.ascontiguousarray(data.squeeze().numpy())
        if not quantized or experts is None:
            writer.add_tensor(name, array)
            return
        blocks = gguf.quants.quantize(array, experts)
        data.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, experts)).view(data.shape))
        writer.add_tensor(name, blocks, raw_dtype=experts)

    for name, tensor in model.state_dict().items():
        part, _, kind = name.rpartition(".")
        if not name.startswith("model.layers."):
            if part != "lm_head" or not config.tie_word_embeddings:
                add(f"{tiny_models._TOP[part]}.{kind}", tensor)
            continue
        number, _, rest = name.removeprefix("model.layers.").partition(".")
        if rest == "mlp.experts.gate_up_proj":
            for which, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
                add(f"blk.{number}.ffn_{which}_exps.weight", half, quantized=True)
        elif rest == "mlp.experts.down_proj":
            add(f"blk.{number}.ffn_down_exps.weight", tensor, quantized=True)
        else:
            part, _, kind = rest.rpartition(".")
            add(f"blk.{number}.{PARTS[part]}.{kind}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return locate(path)


@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("variant", VARIANTS)
def test_safetensors_logits(variant: str, backend: str, tmp_path: Path) -> None:
    """On the native backend a recorded step."""
    reference = make(variant)
    files = save_safetensors(reference, tmp_path)
    names = {name for file in tmp_path.glob("*.safetensors") for name in _names(file)}
    assert "model.layers.1.mlp.experts.0.gate_proj.weight" in names
    whole_and_in_chunks(loaded(files, native()) if backend == "cpu" else Paged.load(files), reference)


def _names(path: Path) -> list[str]:
    data = path.read_bytes()
    return list(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]))


@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("experts", [None, "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("variant", ["qwen2", "qwen3"])
def test_gguf_logits(variant: str, experts: str | None, backend: str, tmp_path: Path) -> None:
    reference, ids = make(variant), random_ids(50)
    files = save_gguf(reference, tmp_path / "tiny.gguf", GGMLQuantizationType[experts] if experts else None)
    facts = read_facts(files).layers[1].mlp
    shared = SHARED if variant == "qwen2" else 0
    assert facts == ExpertsFacts(EXPERTS, CHOSEN, INNER, variant == "qwen3", shared)
    paged = loaded(files, native()) if backend == "cpu" else Paged.load(files)
    agree(paged.whole(ids, [20, 30]), expected(reference, ids))


@pytest.mark.parametrize("experts", ["Q8_0", "Q4_0"])
@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native kernels are not built")
def test_quantized_experts_in_their_own_layout(experts: str, tmp_path: Path) -> None:
    """In bfloat16, where they stay as small as the file has them: recorded and one by one to the bit, near f32, and a
    row's logits the same alone and among others."""
    reference, ids = make("qwen3"), random_ids(50)
    files, ops = save_gguf(reference, tmp_path / "tiny.gguf", GGMLQuantizationType[experts]), native("bfloat16")
    paged = loaded(files, ops, "bfloat16")
    found, wanted = paged.whole(ids), expected(reference, ids)
    assert torch.equal(Paged.load(files, "bfloat16", ops=ops).whole(ids), found)
    assert (found - wanted).norm() <= 0.05 * wanted.norm()
    assert torch.equal(paged.whole(ids, [7, 1, 1, 41]), found)
    paged.batch.release(0)
    others = [random_ids(n, seed=n) for n in (9, 20)]
    for row, of_row in enumerate([others[0], ids, others[1]]):
        paged.admit(row, of_row[:50])
    assert torch.equal(paged.run({0: 9, 1: 30, 2: 5})[1], found[:30])
    assert torch.equal(paged.run({2: 15, 1: 20})[1], found[30:])


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("variant", ["qwen2", "qwen3"])
def test_greedy_tokens_are_those_of_transformers(
    variant: str, backend: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in chunks beside decodes, through the worker."""
    monkeypatch.setenv("OCTAVO_BACKEND", backend)
    reference = make(variant)
    files = save_gguf(reference, tmp_path / "m.gguf") if form == "gguf" else save_safetensors(reference, tmp_path)
    greedy_side_by_side(files, reference, 10)


@pytest.mark.parametrize("backend", ["reference", NATIVE])
def test_a_token_touches_the_experts_that_it_chose(backend: str, tmp_path: Path) -> None:
    """Whatever the others are: they may be no numbers."""
    reference, ids = make("qwen3"), random_ids(1)
    chosen: list[set[int]] = []
    for layer in reference.model.layers:
        layer.mlp.gate.register_forward_hook(lambda *args: chosen.append(set(args[2][2].flatten().tolist())))
    wanted = expected(reference, ids)
    with torch.no_grad():
        for layer, taken in zip(reference.model.layers, list(chosen), strict=True):
            others = [expert for expert in range(EXPERTS) if expert not in taken]
            assert len(others) == EXPERTS - CHOSEN
            layer.mlp.experts.gate_up_proj[others] = torch.nan
            layer.mlp.experts.down_proj[others] = torch.nan
    files = save_safetensors(reference, tmp_path)
    paged = loaded(files, native()) if backend == "cpu" else Paged.load(files)
    agree(paged.whole(ids), wanted)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the native kernels are not built")
def test_all_of_a_step_is_native_and_counts_each_expert_once(tmp_path: Path) -> None:
    from octavo.kernels.cpu.record import RecordedStep

    paged = loaded(save_safetensors(make("qwen2"), tmp_path), native())
    assert isinstance(paged, RecordedPaged) and isinstance(paged.recorded, RecordedStep)
    program = paged.recorded._whole.program
    program.profiling = True
    matrices = 4 * 3 * 32 * INNER  # bytes of an expert
    for tokens, fewest, most in ((1, CHOSEN, CHOSEN), (64, CHOSEN, EXPERTS)):
        paged.batch.release(0)
        paged.admit(0, random_ids(tokens))
        paged.recorded.begin(Runs([0], [tokens], [True]), whole=True)
        names = [name for name, *_ in program.profile()]
        assert names.count("route") == names.count("experts") == 2
        assert not [name for name in names if name.startswith("host")]
        read = [nbytes for name, _, nbytes, _ in program.profile() if name == "experts"]
        assert all(fewest * matrices <= nbytes <= most * matrices for nbytes in read)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_experts_per_tok", 7, "num_experts_per_tok: 7 is not within 1 to 6"),
        ("mlp_only_layers", "all", "mlp_only_layers: is not a list of layers"),
        ("num_experts", 0, "num_experts: 0 is not within"),
        ("hidden_act", "gelu", "hidden_act"),
    ],
)
def test_what_is_refused(key: str, value: object, says: str, tmp_path: Path) -> None:
    files = save_safetensors(make("qwen2"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ModelFileError, match=says):
        read_facts(files)


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    files = save_safetensors(make("qwen2"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_experts": 7}))
    with pytest.raises(ModelFileError, match=r"mlp\.gate\.weight.*\[6, 32\].*\[7, 32\]"):
        Paged.load(files, ops=registry.choose(Spec("cpu", "float32"), "reference"))
