"""The files in which Qwen3.5 comes: GGUF, whose converter changes norms, decays and the order of v's heads, with blocks
for drafts behind; and the folder of the model that takes images too. Against Transformers on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from parity import greedy_side_by_side
from safetensors.torch import load_file, save_file
from test_llama import agree, expected, random_ids
from test_native import loaded, native
from test_qwen import NATIVE
from tiny_models import Paged, make_reference, save_safetensors
from torch import Tensor

from octavo.errors import ModelFileError
from octavo.modelfiles.facts import AttentionFacts, DeltaFacts, read_facts
from octavo.modelfiles.files import ModelFiles, locate
from octavo.modelfiles.generation import end_ids

K_HEADS, WIDTH = 2, 32


def make(v_heads: int = 4, **changes: Any) -> Any:
    reference = make_reference(
        "qwen3_5", num_hidden_layers=4, head_dim=16, linear_num_key_heads=K_HEADS, linear_num_value_heads=v_heads,
        linear_key_head_dim=WIDTH, linear_value_head_dim=WIDTH, initializer_range=0.15, intermediate_size=64, **changes,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith(("layernorm.weight", "q_norm.weight", "k_norm.weight", "model.norm.weight")):
                parameter.sub_(1.0)  # they are multiplied as 1 + w
    return reference


# --- what llama.cpp's converter does, written down from its description

NAMES = {
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight", "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight", "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight", "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight", "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight", "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight", "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias", "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.norm.weight": "ssm_norm.weight", "linear_attn.out_proj.weight": "ssm_out.weight",
}  # fmt: skip
TOP = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip


def tiled(x: Tensor, v_heads: int, width: int, first: int = 0) -> Tensor:
    """Along dim 0, from `first` on: the first head of v of every head of k, then the second of every one, and so on."""
    kept, heads = x[:first], x[first:]
    heads = heads.reshape(K_HEADS, v_heads // K_HEADS, width, *x.shape[1:]).transpose(0, 1).reshape(heads.shape)
    return torch.cat([kept, heads])


def converted(name: str, x: Tensor, v_heads: int) -> Tensor:
    if name.endswith("norm.weight") and "linear_attn" not in name:
        return x + 1
    part = name.rpartition("linear_attn.")[2]
    if part in ("in_proj_qkv.weight", "conv1d.weight"):
        return tiled(x.squeeze(), v_heads, WIDTH, first=2 * K_HEADS * WIDTH)
    if part == "in_proj_z.weight":
        return tiled(x, v_heads, WIDTH)
    if part in ("in_proj_a.weight", "in_proj_b.weight", "dt_bias"):
        return tiled(x, v_heads, 1)
    if part == "A_log":
        return tiled(-x.exp(), v_heads, 1)
    return tiled(x.T, v_heads, WIDTH).T if part == "out_proj.weight" else x


def save_gguf(model: Any, path: Path, kind: GGMLQuantizationType | None = None, drafts: int = 0) -> ModelFiles:
    """`kind`: the type of large matrices; the model's become what that holds. `drafts`: blocks of them behind."""
    config, v_heads = model.config, model.config.linear_num_value_heads
    writer = gguf.GGUFWriter(path, "qwen35")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers + drafts)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    turned = int(config.head_dim * config.rope_parameters["partial_rotary_factor"])
    writer.add_rope_dimension_count(turned)
    writer.add_rope_dimension_sections([(turned // 2 + 2 - part) // 3 for part in range(3)] + [0])
    writer.add_vocab_size(config.vocab_size)
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(v_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * v_heads)
    writer.add_uint32("qwen35.full_attention_interval", 4)
    if drafts:
        writer.add_uint32("qwen35.nextn_predict_layers", drafts)

    def add(name: str, data: Tensor, source: Tensor, back: Any) -> None:
        array = np.ascontiguousarray(data.numpy())
        if kind is None or data.ndim < 2 or "conv1d" in name or data.shape[-1] % 32:
            writer.add_tensor(name, array)
            return
        blocks = gguf.quants.quantize(array, kind)
        source.copy_(back(torch.from_numpy(gguf.quants.dequantize(blocks, kind))))
        writer.add_tensor(name, blocks, raw_dtype=kind)

    for name, tensor in model.state_dict().items():
        if name.startswith("model.layers."):
            number, _, rest = name.removeprefix("model.layers.").partition(".")
            add(
                f"blk.{number}.{NAMES[rest]}",
                converted(name, tensor, v_heads),
                tensor,
                lambda x, n=name: _back(n, x, v_heads),
            )
        elif name != "lm_head.weight" or not config.tie_word_embeddings:
            add(TOP[name], converted(name, tensor, v_heads), tensor, lambda x: x)
    for at in range(drafts):
        block = f"blk.{config.num_hidden_layers + at}."
        writer.add_tensor(f"{block}nextn.eh_proj.weight", np.zeros((32, 64), np.float32))
        writer.add_tensor(f"{block}attn_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return locate(path)


def _back(name: str, x: Tensor, v_heads: int) -> Tensor:
    """What `converted` makes `x` of, where that only changes the order."""
    places = torch.arange(x.numel(), dtype=torch.float64).view(x.shape)
    found = torch.empty(x.numel())
    found[converted(name, places, v_heads).flatten().long()] = x.flatten()
    return found.view(x.shape)


# --- GGUF


@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("v_heads", [2, 4, 6])
@pytest.mark.parametrize("kind", [None, "F16", "Q8_0", "Q4_1"])
def test_gguf_logits(v_heads: int, kind: str | None, backend: str, tmp_path: Path) -> None:
    reference, ids = make(v_heads), random_ids(50)
    files = save_gguf(reference, tmp_path / "tiny.gguf", GGMLQuantizationType[kind] if kind else None)
    paged = loaded(files, native()) if backend == "cpu" else Paged.load(files)
    agree(paged.whole(ids, [20, 1, 29]), expected(reference, ids))


def test_what_a_gguf_says(tmp_path: Path) -> None:
    reference = make(4, num_attention_heads=4)
    files = save_gguf(reference, tmp_path / "tiny.gguf", drafts=1)
    facts = read_facts(files)
    assert [type(layer.mixer) for layer in facts.layers] == [DeltaFacts] * 3 + [AttentionFacts]
    assert facts.layers[0].mixer == DeltaFacts(2, 4, WIDTH, WIDTH, 4)
    attention = facts.layers[3].mixer
    assert isinstance(attention, AttentionFacts) and attention.rope.rotary_dim == 4 and attention.gated
    agree(Paged.load(files).whole(random_ids(20)), expected(reference, random_ids(20)))


def test_greedy_tokens_of_a_gguf(tmp_path: Path) -> None:
    reference = make(4)
    greedy_side_by_side(save_gguf(reference, tmp_path / "tiny.gguf"), reference, 8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ssm.time_step_rank", 3, "3 heads of v for 2 of k"),
        ("ssm.conv_kernel", 1, "ssm.conv_kernel"),
        ("nextn_predict_layers", 4, "4 of 4 blocks are for drafts"),
        ("rope.dimension_count", 5, "5 of 16 features cannot be turned in pairs"),
        ("rope.dimension_count", 18, "18 of 16 features cannot be turned in pairs"),
    ],
)
def test_what_a_gguf_may_not_say(
    key: str, value: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = gguf.GGUFWriter.add_key_value

    def other(self: Any, name: str, found: Any, *more: Any, **kinds: Any) -> None:
        add(self, name, value if name == f"qwen35.{key}" else found, *more, **kinds)

    monkeypatch.setattr(gguf.GGUFWriter, "add_key_value", other)
    files = save_gguf(make(4), tmp_path / "tiny.gguf")
    if key == "nextn_predict_layers":
        monkeypatch.undo()
        writer = tmp_path / "drafts.gguf"
        files = save_gguf(make(4), writer, drafts=1)
        data = writer.read_bytes()
        at = data.index(b"qwen35.nextn_predict_layers") + len(b"qwen35.nextn_predict_layers") + 4
        writer.write_bytes(data[:at] + (5).to_bytes(4, "little") + data[at + 4 :])
        message = "5 of 5 blocks are for drafts"
    with pytest.raises(ModelFileError, match=message):
        read_facts(files)


# --- the model that takes images too


def nested(reference: Any, folder: Path) -> ModelFiles:
    """Its text model's config and tensors as that model's file has them, with some of its other models'."""
    save_safetensors(reference, folder)
    config = json.loads((folder / "config.json").read_text())
    whole = {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": config,
        "vision_config": {"model_type": "qwen3_5_vision"}, "tie_word_embeddings": config["tie_word_embeddings"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(whole))
    tensors = {
        f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors |= {"model.visual.patch_embed.proj.weight": torch.zeros(4, 4), "mtp.fc.weight": torch.zeros(4, 4)}
    save_file(tensors, folder / "model.safetensors")
    return locate(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_the_text_model_of_one_that_takes_images(tied: bool, tmp_path: Path) -> None:
    reference = make(4, tie_word_embeddings=tied, rope_parameters={
        "rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5, "mrope_interleaved": True,
        "mrope_section": [2, 1, 1],
    })  # fmt: skip
    files = nested(reference, tmp_path)
    attention = read_facts(files).layers[3].mixer
    assert isinstance(attention, AttentionFacts) and (attention.rope.rotary_dim, attention.rope.theta) == (8, 5e5)
    assert read_facts(files).tie_embeddings == tied
    ids = random_ids(40)
    agree(Paged.load(files).whole(ids, [17, 1, 22]), expected(reference, ids))
    assert end_ids(files.path, "config.json") == [2], "it stands in the text model's config"


def test_what_is_left_over_there_is_refused(tmp_path: Path) -> None:
    files = nested(make(4), tmp_path)
    save_file(
        {**load_file(tmp_path / "model.safetensors"), "model.other.weight": torch.zeros(2)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(ModelFileError, match=r"model\.other\.weight"):
        Paged.load(files)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3_5ForConditionalGeneration"]}))
    with pytest.raises(ModelFileError, match="text_config: is missing or not an object"):
        read_facts(files)
