"""config.json with keys that somebody added, left out or brought from another family: the logits are those of
Transformers for the same folder. And GGUF keys, which llama.cpp takes otherwise, each against a formula."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_llama import agree, random_ids
from tiny_models import Paged, make_reference, save_gguf, save_safetensors
from transformers import AutoConfig, AutoModelForCausalLM

from octavo.errors import ModelFileError
from octavo.layers.rope import inverse_frequencies
from octavo.modelfiles import families, loadable
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.families.reading import Folder
from octavo.modelfiles.files import ModelFiles, locate
from octavo.models.registry import BUILDERS
from octavo.weights.formats.convert import FORMATS

LEFT_OUT: Any = object()
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 500.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OLD = {"rope_parameters": LEFT_OUT, "rope_theta": 500.0}
NEW = {"rope_parameters": DEFAULT_ROPE}

EDITS: dict[str, tuple[str, dict[str, Any]]] = {
    "scaling beside parameters": ("llama", {"rope_scaling": {**YARN, "rope_theta": 500.0}, **NEW}),
    "scaling beside parameters, by its old name": ("qwen3", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "scaling beside parameters, which have another": (
        "qwen2",
        {"rope_parameters": {**LLAMA3, "rope_theta": 1e4}, "rope_scaling": {"rope_type": "linear", "factor": 3}},
    ),
    "empty scaling beside parameters": ("llama", {"rope_scaling": {}, **NEW}),
    "no scaling beside parameters": ("llama", {"rope_scaling": None, **NEW}),
    "theta in parameters beside another": ("llama", {**NEW, "rope_theta": 70.0}),
    "type beside rope_type": ("llama", {"rope_parameters": {**DEFAULT_ROPE, "type": "yarn", "factor": 9}}),
    "yarn": ("qwen3", {**OLD, "rope_scaling": YARN}),
    "yarn, of the model's length": ("llama", {**OLD, "rope_scaling": {"type": "yarn", "factor": 2.0}}),
    "yarn, without a factor": ("llama", {**OLD, "rope_scaling": {**YARN, "factor": None}}),
    "yarn, with its own numbers": (
        "qwen2",
        {**OLD, "rope_scaling": {**YARN, "beta_fast": 8, "beta_slow": 2, "attention_factor": 1.7}},
    ),
    "yarn, by scales": ("llama", {**OLD, "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}}),
    "yarn, by one scale": ("llama", {**OLD, "rope_scaling": {**YARN, "mscale": 0.7}}),
    "yarn, not truncated": ("llama", {**OLD, "rope_scaling": {**YARN, "truncate": False}}),
    "llama3, of the model's length": ("llama", {**OLD, "rope_scaling": LLAMA3}),
    "llama3, original length beside it": (
        "llama",
        {
            **OLD,
            "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16},
            "original_max_position_embeddings": 64,
        },
    ),
    "partial rotation, which these do not know": ("llama", {**OLD, "partial_rotary_factor": 0.5}),
    "a window, which Llama does not know": ("llama", {"sliding_window": 5, "use_sliding_window": True}),
    "kinds of layers, which Llama does not know": (
        "llama",
        {"sliding_window": 5, "layer_types": ["sliding_attention"] * 2},
    ),
    "a window that Mistral has by default": ("mistral", {"sliding_window": LEFT_OUT}),
    "no window": ("mistral", {"sliding_window": None}),
    "a switch that Mistral does not know": ("mistral", {"sliding_window": 7, "use_sliding_window": False}),
    "a first layer that Mistral does not know": ("mistral", {"sliding_window": 7, "max_window_layers": 1}),
    "windows by layer, as Ministral": (
        "mistral",
        {"sliding_window": 7, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "a window that is switched off": ("qwen2", {"sliding_window": 7, "layer_types": LEFT_OUT}),
    "a window from a layer on": (
        "qwen2",
        {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1, "layer_types": LEFT_OUT},
    ),
    "a window from the 28th layer on": (
        "qwen3",
        {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": LEFT_OUT, "layer_types": LEFT_OUT},
    ),
    "biases, which Mistral does not know": ("mistral", {"attention_bias": True, "mlp_bias": True}),
    "biases, which Qwen2 does not know": ("qwen2", {"attention_bias": False, "mlp_bias": True}),
    "key-value heads as many as heads": ("llama 4", {"num_key_value_heads": LEFT_OUT}),
    "key-value heads null": ("qwen2 4", {"num_key_value_heads": None}),
    "eps by default": ("llama", {"rms_norm_eps": LEFT_OUT}),
    "no architectures": ("qwen2", {"architectures": LEFT_OUT}),
    "no model type": ("llama", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
    "swish": ("llama", {"hidden_act": "swish"}),
}


def edited(files: ModelFiles, changes: dict[str, Any]) -> ModelFiles:
    path = files.path / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not LEFT_OUT}))
    return files


def made(kind: str, folder: Path, **changes: Any) -> ModelFiles:
    name, _, kv_heads = kind.partition(" ")
    return save_safetensors(make_reference(name, num_key_value_heads=int(kv_heads or 2), head_dim=8, **changes), folder)


def logits(files: ModelFiles, ids: list[int]) -> torch.Tensor:
    """Transformers'."""
    model = AutoModelForCausalLM.from_pretrained(files.path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("case", EDITS)
def test_edited_configs_mean_what_they_mean_to_transformers(case: str, tmp_path: Path) -> None:
    kind, changes = EDITS[case]
    files, ids = edited(made(kind, tmp_path), changes), random_ids(60)
    agree(Paged.load(files).whole(ids), logits(files, ids))


@pytest.mark.parametrize(("name", "folder"), families.FOLDERS.items())
def test_defaults_are_those_of_transformers(name: str, folder: Folder) -> None:
    model = getattr(transformers, name)
    config, theirs = model.config_class, model.config_class()
    assert theirs.model_type == folder.model_type
    if folder.part is not None:
        assert not theirs.tie_word_embeddings, "it is said there"
        theirs = getattr(theirs, folder.part)
    computed = {"head_dim", "layer_types", "mlp_only_layers", "num_local_experts"}
    for key, value in folder.defaults.items():
        if key == "num_key_value_heads" and value is None:
            assert theirs.num_key_value_heads == theirs.num_attention_heads
        elif key == "sliding_window" and not getattr(theirs, "use_sliding_window", True):
            assert config(use_sliding_window=True).sliding_window == value
        elif key not in computed or value is not None:
            assert getattr(theirs, key) == value, key
    assert theirs.default_theta in (10000.0, {"global": 1e6, "local": 1e4})


def test_what_is_served_is_said_in_one_place() -> None:
    assert set(BUILDERS) == {*families.FOLDERS, *families.GGUF}
    assert set(loadable.TYPES) == FORMATS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 500.0}},
            "rope_scaling: takes the place of .* 500.0 is",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2}},
            "'dynamic' is not supported yet; linear, llama3 and yarn are",
        ),
        ({"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}}, "partial_rotary_factor: 0.5"),
        ({"rope_parameters": {"full_attention": DEFAULT_ROPE}}, "rope_parameters: full_attention"),
        ({"model_type": "gpt2"}, "model_type: 'gpt2' contradicts architectures, by which it is 'llama'"),
        ({"per_layer_config": {"0": {"num_key_value_heads": 1}}}, "per_layer_config"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
    ],
)
def test_what_is_not_computed_is_refused_by_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    files = edited(made("llama", tmp_path), changes)
    with pytest.raises(ModelFileError, match=message):
        read_facts(files)


# --- heads


@pytest.mark.parametrize("case", ["another head", "the same head", "the head alone", "neither"])
def test_a_tied_head_that_is_stored_too(case: str, tmp_path: Path) -> None:
    """Both are used when they differ, as Transformers does; the one that is there when only one is."""
    files = made("qwen2", tmp_path, tie_word_embeddings=case != "another head")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    table, head = "model.embed_tokens.weight", "lm_head.weight"
    if case == "the same head":
        tensors[head] = tensors[table].clone()
    elif case == "the head alone":
        tensors[head] = tensors.pop(table)
    elif case == "neither":
        del tensors[table]
    save_file(tensors, path, metadata={"format": "pt"})
    edited(files, {"tie_word_embeddings": True})
    ids = random_ids(40)
    if case == "neither":
        with pytest.raises(ModelFileError, match=r"embed_tokens\.weight' is missing"):
            Paged.load(files)
        return
    paged = Paged.load(files)
    agree(paged.whole(ids), logits(files, ids))
    twice = Paged.load(made("qwen2", tmp_path / "two", tie_word_embeddings=False)).model.nbytes
    assert (paged.model.nbytes == twice) is (case == "another head")


# --- GGUF


def gguf_file(path: Path, rope_freqs: torch.Tensor | None = None, **keys: Any) -> ModelFiles:
    """A Llama with further keys under llama.rope."""
    plain = save_gguf(make_reference(), path.with_suffix(".plain.gguf"), rope_freqs=rope_freqs)
    reader = gguf.GGUFReader(plain.path)
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    for name, value in keys.items():
        full = "llama.rope." + name.replace("__", ".")
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        else:
            writer.add_float32(full, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return locate(path)


FACTORS = torch.tensor([1.0, 1.0, 2.0, 8.0])
SCALE = 0.1 * math.log(4.0) + 1


@pytest.mark.parametrize(
    ("keys", "factors", "divided", "scale"),
    [
        ({"scaling__factor": 4.0}, False, 4.0, 1.0),
        ({"scale_linear": 4.0}, False, 4.0, 1.0),
        ({"scaling__factor": 2.0, "scale_linear": 4.0}, False, 2.0, 1.0),
        ({"scaling__factor": 0.0, "scale_linear": 4.0}, False, 1.0, 1.0),
        ({"scaling__type": "none", "scaling__factor": 4.0}, False, 1.0, 1.0),
        ({"scaling__type": "none", "scaling__attn_factor": 1.25}, False, 1.0, 1.25),
        ({"scaling__factor": 4.0, "scaling__attn_factor": 1.25}, True, 4.0, 1.25),
        ({}, True, 1.0, 1.0),
        ({"scaling__type": "yarn", "scaling__factor": 4.0}, False, "yarn", SCALE),
        ({"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__attn_factor": 0.5}, True, "yarn", SCALE / 2),
        ({"scaling__type": "yarn"}, False, 1.0, 1.0),
    ],
)
def test_gguf_rope_is_what_llama_cpp_computes(
    keys: dict[str, Any], factors: bool, divided: float | str, scale: float, tmp_path: Path
) -> None:
    """Scaling without a type is linear; factors of a tensor and a scaling count both; attn_factor counts for all."""
    rope = read_facts(gguf_file(tmp_path / "m.gguf", FACTORS if factors else None, **keys)).attention.rope
    found = inverse_frequencies(rope, FACTORS if factors else None)
    plain = 1.0 / 10000.0 ** (torch.arange(0, 8, 2) / 8) / (FACTORS if factors else 1.0)
    if divided == "yarn":
        low = math.floor(8 * math.log(128 / (32 * 2 * math.pi)) / (2 * math.log(10000.0)))
        high = math.ceil(8 * math.log(128 / (2 * math.pi)) / (2 * math.log(10000.0)))
        ramp = ((torch.arange(4) - max(low, 0)) / max(0.001, high - max(low, 0))).clamp(0, 1)
        wanted = plain / 4 * ramp + plain * (1 - ramp)
    else:
        assert isinstance(divided, float)
        wanted = plain / divided
    assert torch.allclose(found, wanted, rtol=1e-6) and rope.attention_factor == pytest.approx(scale)


def test_gguf_scaling_reaches_the_logits(tmp_path: Path) -> None:
    """Yarn of a GGUF equals yarn of the folder it was made of."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
    ids = random_ids(60)
    wanted = logits(save_safetensors(make_reference(rope_parameters=rope), tmp_path), ids)
    agree(Paged.load(gguf_file(tmp_path / "m.gguf", scaling__type="yarn", scaling__factor=4.0)).whole(ids), wanted)


def test_the_names_of_transformers_are_loaded_by_it() -> None:
    for folder in families.FOLDERS.values():
        assert AutoConfig.for_model(folder.model_type).model_type == folder.model_type
