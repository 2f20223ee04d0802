"""Model facts: config.json in the shapes Transformers writes, GGUF metadata, and everything that makes no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_bytes import BOOL, F32, STRING, U32, File, kv, kv_array, tensor

from octavo.cachespec import Paged
from octavo.errors import ModelFileError
from octavo.modelfiles.config_facts import config_facts
from octavo.modelfiles.facts import AttentionFacts, LayerFacts, MLPFacts, ModelFacts, RopeFacts, read_facts
from octavo.modelfiles.files import locate
from octavo.modelfiles.loadable import check_types

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
}


def facts(**changes: Any) -> ModelFacts:
    return config_facts({**LLAMA, **changes}, "config.json")


def biases(found: ModelFacts) -> tuple[bool, bool, bool]:
    """→ of q, k and v; of attention's output; of the MLP"""
    layer = found.layers[0]
    return layer.mixer.qkv_bias, layer.mixer.out_bias, layer.mlp.bias


def test_llama_config() -> None:
    assert facts() == ModelFacts(
        architecture="LlamaForCausalLM",
        layers=(LayerFacts(AttentionFacts(4, 2, 16, RopeFacts(theta=10000.0, rotary_dim=16), 0.25), MLPFacts(128)),)
        * 2,
        hidden_size=64,
        vocab_size=100,
        max_position=512,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
    assert facts().cache_specs == (Paged(2, 16, 16),) * 2


def test_optional_keys() -> None:
    assert facts(num_key_value_heads=None).attention.num_kv_heads == 4
    assert facts(head_dim=32).attention.head_dim == 32
    assert facts(tie_word_embeddings=True).tie_embeddings
    assert biases(facts(attention_bias=True)) == (True, True, False)
    assert biases(facts(mlp_bias=True)) == (False, False, True)
    assert facts(torch_dtype=None, dtype="float32").dtype == "float32"
    assert facts(architectures=None, model_type="llama") == facts(model_type="llama") == facts()


def test_keys_of_other_families_say_nothing() -> None:
    """As in Transformers, whose class for each architecture reads its own."""
    mistral: dict[str, Any] = {"architectures": ["MistralForCausalLM"], "sliding_window": None}
    assert facts(sliding_window=64, max_window_layers=1, layer_types="x", partial_rotary_factor=0.5) == facts()
    assert facts(**mistral, attention_bias=True, mlp_bias=True, use_sliding_window=True) == facts(**mistral)
    qwen2 = facts(architectures=["Qwen2ForCausalLM"], attention_bias=False)
    assert biases(qwen2) == (True, False, False)


def test_keys_that_are_left_out() -> None:
    """As in Transformers, whose classes have values of their own."""
    found = config_facts({"architectures": ["MistralForCausalLM"]}, "config.json")
    at = found.attention
    assert (found.hidden_size, at.num_kv_heads, at.window, found.vocab_size) == (4096, 8, 4096, 32000)
    assert config_facts({"model_type": "qwen3"}, "config.json").attention.head_dim == 128


def test_windows_of_some_layers() -> None:
    def windows(architecture: str, **changes: Any) -> list[int | None]:
        found = facts(architectures=[architecture], sliding_window=64, num_hidden_layers=3, **changes)
        return [layer.mixer.window for layer in found.layers]

    qwen, mistral = "Qwen2ForCausalLM", "MistralForCausalLM"
    assert windows(mistral) == windows(mistral, use_sliding_window=False, max_window_layers=2) == [64, 64, 64]
    assert windows(qwen) == windows(qwen, use_sliding_window=False) == [None, None, None]
    assert windows(qwen, use_sliding_window=True) == [None, None, None]  # 28 layers do without, unless it says other
    assert windows(qwen, use_sliding_window=True, max_window_layers=1) == [None, 64, 64]
    assert windows(qwen, use_sliding_window=True, max_window_layers=0) == [64, 64, 64]
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(mistral, layer_types=kinds) == [64, None, 64]
    assert windows(qwen, use_sliding_window=True, layer_types=kinds, max_window_layers=0) == [64, None, 64]


@pytest.mark.parametrize("where", ["old", "new"])
def test_rope_scaling(where: str) -> None:
    def rope(**scaling: Any) -> RopeFacts:
        if where == "old":
            return facts(rope_theta=500000.0, rope_scaling=scaling).attention.rope
        return facts(rope_parameters={"rope_theta": 500000.0, **scaling}).attention.rope

    base = {"theta": 500000.0, "rotary_dim": 16}
    assert rope(rope_type="default") == RopeFacts(**base)
    assert rope(type="linear", factor=4) == RopeFacts(**base, scaling="linear", factor=4.0)
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    found = rope(rope_type="llama3", original_max_position_embeddings=128, **llama3)
    assert found == RopeFacts(**base, scaling="llama3", original_max_position=128, **llama3)
    yarn = rope(rope_type="yarn", factor=2.0, beta_fast=16, attention_factor=1.5)
    assert (yarn.scaling, yarn.beta_fast, yarn.beta_slow, yarn.attention_factor) == ("yarn", 16.0, 1.0, 1.5)


def test_yarn_lengthens_the_context() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert facts(rope_scaling=scaling).max_position == 1024
    assert facts(rope_scaling={**scaling, "factor": 2.0}).max_position == 512
    assert facts(rope_scaling=scaling, max_position_embeddings=4096).max_position == 4096


def test_an_architecture_is_looked_up_before_its_keys() -> None:
    """Families that describe themselves in other keys are named, not a key that they lack."""
    for config in (
        {"architectures": ["GPT2LMHeadModel"], "n_embd": 768},
        {"architectures": ["T5ForConditionalGeneration"]},
    ):
        with pytest.raises(
            ModelFileError, match=r"architecture '.*' is not supported yet; supported: .*, LlamaForCausalLM,"
        ):
            config_facts(config, "config.json")
    with pytest.raises(ModelFileError, match=r"architecture 'dbrx' is not supported yet; supported: .*llama, mistral"):
        config_facts({"model_type": "dbrx"}, "config.json")


LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8, "high_freq_factor": 4}
QWEN = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 8}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"architectures": None}, "architectures"),
    ({"architectures": []}, "architectures"),
    ({"hidden_size": None}, "hidden_size: is missing"),
    ({"hidden_size": "64"}, "hidden_size: '64' is not an integer"),
    ({"hidden_size": 64.0}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": 2**63}, "hidden_size: 9223372036854775808 is not within"),
    ({"hidden_size": 66}, "num_attention_heads: 4 does not divide"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: 0"),
    ({"num_hidden_layers": -1}, "num_hidden_layers: -1"),
    ({"num_attention_heads": 0}, "num_attention_heads: 0"),
    ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide the 4 heads"),
    ({"num_key_value_heads": 0}, "num_key_value_heads: 0"),
    ({"head_dim": 0}, "head_dim: 0"),
    ({"vocab_size": 0}, "vocab_size: 0"),
    ({"max_position_embeddings": 0}, "max_position_embeddings: 0"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ({"rope_theta": float("inf")}, "rope_theta"),
    ({"rope_theta": -1}, "rope_theta"),
    ({"head_dim": 15}, "head_dim: 15 is odd"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    (
        {"rope_scaling": {"rope_type": "longrope"}},
        "rope_type: 'longrope' is not supported yet; linear, llama3 and yarn are",
    ),
    ({"rope_scaling": {"type": "linear"}}, "factor: is missing"),
    ({"rope_scaling": {"type": "yarn"}}, "factor: is missing"),
    ({"rope_scaling": LLAMA3_ROPE}, "low_freq_factor: is missing"),
    ({"rope_scaling": LLAMA3_ROPE | {"low_freq_factor": 4}}, "low_freq_factor: 4 is not below"),
    ({"rope_parameters": {"sliding_attention": {}}}, "rope_parameters: sliding_attention"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    (QWEN | {"sliding_window": 0}, "sliding_window: 0"),
    (QWEN | {"max_window_layers": -1}, "max_window_layers: -1"),
    (QWEN | {"layer_types": ["full_attention"]}, "layer_types: is not a list of 2 names"),
    (QWEN | {"layer_types": "full_attention"}, "layer_types: is not a list"),
    (QWEN | {"layer_types": ["full_attention", "chunked_attention"]}, "full_attention or sliding_attention"),
    (QWEN | {"sliding_window": None, "layer_types": ["sliding_attention"] * 2}, "there is no sliding_window"),
    ({"hidden_act": 3}, "hidden_act"),
    ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported here"),
    ({"model_type": "mistral"}, "model_type: 'mistral' contradicts architectures"),
    ({"per_layer_config": {}}, "per_layer_config"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_configs_are_refused_by_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError) as error:
        facts(**change)
    assert error.value.message.startswith("config.json: ") and message in error.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "holds a list"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * ((16 << 20) + 1), "larger than"),
    ],
    ids=["cut", "list", "bytes", "twice", "digits", "deep", "large"],
)
def test_config_files_that_are_not_an_object(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ModelFileError, match=message):
        read_facts(locate(tmp_path))


def test_facts_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_facts(locate(tmp_path)) == facts()


# ---- GGUF

GGUF: dict[str, tuple[int, object]] = {
    "general.architecture": (STRING, "llama"),
    "llama.block_count": (U32, 2),
    "llama.context_length": (U32, 512),
    "llama.embedding_length": (U32, 64),
    "llama.feed_forward_length": (U32, 128),
    "llama.attention.head_count": (U32, 4),
    "llama.attention.head_count_kv": (U32, 2),
    "llama.attention.layer_norm_rms_epsilon": (F32, 0.5),
}
TOKENS = kv_array("tokenizer.ggml.tokens", STRING, [f"t{i}" for i in range(4)])


def gguf_facts(
    tmp_path: Path, *more: bytes, names: tuple[str, ...] = (), **changes: tuple[int, object] | None
) -> ModelFacts:
    """Facts of a GGUF file with these keys changed (`_` for `.`, `__` for `_`), `more` keys and `names` tensors."""
    keys = dict(GGUF)
    for key, content in changes.items():
        real = key.replace("__", "\0").replace("_", ".").replace("\0", "_")
        if content is None:
            del keys[real]
        else:
            keys[real] = content
    sizes = [("token_embd.weight", [64, 4]), *((name, [8]) for name in names)]
    tensors = [tensor(name, dims, 0, 1024 * bool(i) + 32 * max(i - 1, 0)) for i, (name, dims) in enumerate(sizes)]
    path = tmp_path / "m.gguf"
    entries = [kv(key, *content) for key, content in keys.items()]
    path.write_bytes(File(keys=[*entries, *more], tensors=tensors, data=bytes(1024 + 32 * len(names))).build())
    return read_facts(locate(path))


def test_gguf_metadata(tmp_path: Path) -> None:
    assert gguf_facts(tmp_path, TOKENS) == ModelFacts(
        architecture="llama",
        layers=(LayerFacts(AttentionFacts(4, 2, 16, RopeFacts(theta=10000.0, rotary_dim=16), 0.25), MLPFacts(128)),)
        * 2,
        hidden_size=64,
        vocab_size=4,
        max_position=512,
        norm_eps=0.5,
        tie_embeddings=True,
        dtype="float32",
    )


def test_gguf_tensors_tell_the_rest(tmp_path: Path) -> None:
    names = ("output.weight", "blk.0.attn_q.bias", "blk.0.ffn_up.bias", "rope_freqs.weight")
    found = gguf_facts(tmp_path, names=names)
    assert (found.tie_embeddings, *biases(found)) == (False, True, False, True)
    assert found.attention.rope.has_factors


def test_gguf_optional_keys(tmp_path: Path) -> None:
    more = [
        kv("llama.attention.key_length", U32, 32),
        kv("llama.attention.value_length", U32, 32),
        kv("llama.rope.dimension_count", U32, 32),
        kv("llama.rope.freq_base", F32, 1000.0),
        kv("llama.rope.scaling.type", STRING, "linear"),
        kv("llama.rope.scaling.factor", F32, 4.0),
    ]
    found = gguf_facts(tmp_path, *more)
    assert found.attention.head_dim == 32
    assert found.attention.rope == RopeFacts(theta=1000.0, rotary_dim=32, scaling="linear", factor=4.0)
    assert gguf_facts(tmp_path, kv("llama.attention.sliding_window", U32, 8)) == gguf_facts(tmp_path)  # as llama.cpp
    neutral = [kv("llama.attention.causal", BOOL, True), kv("llama.expert_count", U32, 0)]
    assert gguf_facts(tmp_path, *neutral) == gguf_facts(tmp_path)
    assert gguf_facts(tmp_path, kv("llama.rope.scale_linear", F32, 2.0)).attention.rope.factor == 2.0
    assert gguf_facts(tmp_path, kv("llama.rope.scaling.type", STRING, "none")).attention.rope.scaling is None


def test_gguf_values_per_layer(tmp_path: Path) -> None:
    changes = {"llama_attention_head__count__kv": None}
    same = kv_array("llama.attention.head_count_kv", U32, [2, 2])
    assert gguf_facts(tmp_path, same, **changes).attention.num_kv_heads == 2
    with pytest.raises(ModelFileError, match="differs between layers"):
        gguf_facts(tmp_path, kv_array("llama.attention.head_count_kv", U32, [2, 4]), **changes)


def test_a_gguf_architecture_is_looked_up_before_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(File(keys=[kv("general.architecture", STRING, "gpt2"), TOKENS], tensors=[], data=b"").build())
    with pytest.raises(
        ModelFileError, match=r"'gpt2' is not supported yet; supported: .*llama, qwen2, qwen2moe, qwen3"
    ):
        read_facts(locate(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general_architecture": None}, "general.architecture: is missing"),
        ({"llama_block__count": (U32, 0)}, "llama.block_count: 0"),
        ({"llama_block__count": (U32, 2**32 - 1)}, "llama.block_count: 4294967295"),
        ({"llama_block__count": (STRING, "2")}, "llama.block_count: '2'"),
        ({"llama_attention_head__count": (U32, 0)}, "llama.attention.head_count: 0"),
        ({"llama_attention_head__count__kv": (U32, 0)}, "llama.attention.head_count_kv: 0"),
        ({"llama_attention_head__count__kv": (U32, 3)}, "llama.attention.head_count_kv: 3 does not divide"),
        ({"llama_embedding__length": None}, "llama.embedding_length: is missing"),
        ({"llama_context__length": (U32, 0)}, "llama.context_length: 0"),
        ({"llama_attention_layer__norm__rms__epsilon": (F32, float("nan"))}, "rms_epsilon"),
        ({"llama_rope_dimension__count": (U32, 0)}, "llama.rope.dimension_count: 0 of 16"),
        ({"llama_rope_dimension__count": (U32, 8)}, "llama.rope.dimension_count: 8 of 16: partial rotation"),
        ({"llama_rope_scaling_yarn__beta__fast": (F32, 8.0)}, "llama.rope.scaling.yarn_beta_fast: 8.0"),
        ({"llama_attention_layer__norm__rms__epsilon": None}, "rms_epsilon: is missing"),
        ({"llama_attention_key__length": (U32, 32)}, "llama.attention.value_length: 16 is not the key length 32"),
        ({"llama_attention_causal": (BOOL, False)}, "llama.attention.causal: False: only causal attention is"),
        ({"llama_expert__count": (U32, 8)}, "llama.expert_count: 8: a mixture of experts is not"),
        ({"llama_attention_scale": (F32, 0.5)}, "llama.attention.scale: 0.5: is not part of"),
        ({"llama_rope_freq__base": (F32, 0.0)}, "llama.rope.freq_base"),
        (
            {"llama_rope_scaling_type": (STRING, "longrope")},
            "llama.rope.scaling.type: 'longrope' is not supported yet; linear and yarn are",
        ),
        ({"llama_attention_value__length": (U32, 8)}, "llama.attention.value_length"),
        ({"split_count": (U32, 3)}, "split.count"),
        ({"tokenizer_ggml_tokens": (U32, 3)}, "tokenizer.ggml.tokens"),
    ],
)
def test_gguf_that_makes_no_sense(tmp_path: Path, changes: dict[str, tuple[int, object] | None], message: str) -> None:
    with pytest.raises(ModelFileError) as error:
        gguf_facts(tmp_path, **changes)
    assert error.value.message.startswith("m.gguf: ") and message in error.value.message


def test_types_that_cannot_be_loaded_are_known_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tensors = [tensor("norm.weight", [8], 0, 0), tensor("a.weight", [256, 1], 16, 32)]
    path.write_bytes(File(tensors=tensors, data=bytes(32 + 66)).build())
    with pytest.raises(
        ModelFileError, match=r"tensor 'a.weight': type IQ2_XXS is not supported as weights; F32, .* are"
    ):
        check_types(locate(path))
    path.write_bytes(File().build())
    check_types(locate(path))


def test_gguf_vocabulary_and_embedding_disagree(tmp_path: Path) -> None:
    tokens = kv_array("tokenizer.ggml.tokens", STRING, ["a", "b", "c"])
    with pytest.raises(ModelFileError, match=r"3 tokens, but tensor 'token_embd.weight' has 4 rows"):
        gguf_facts(tmp_path, tokens)


def test_demo_model(demo_gguf: Path) -> None:
    found = read_facts(locate(demo_gguf))
    assert (found.num_layers, found.hidden_size, found.attention.head_dim, found.vocab_size) == (30, 576, 64, 49152)
    assert (found.attention.num_heads, found.attention.num_kv_heads, found.tie_embeddings) == (9, 3, True)
    assert found.attention.rope == RopeFacts(theta=100000.0, rotary_dim=64)
