"""Which compute type goes with the types that a model's matrices are stored in, as the headers have them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from gguf_bytes import STRING, U32, File, kv, tensor

from octavo.errors import ModelFileError
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import locate
from octavo.modelfiles.stored import count_numbers, exact_dtype

BIG, SMALL = (64, 64), (4, 64)
CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "torch_dtype": "float32"}
SIZES = {"F16": 2, "BF16": 2, "F32": 4}
GGUF_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2}


@pytest.mark.parametrize(
    ("tensors", "dtype"),
    [
        ([("F16", BIG)], "float16"),
        ([("F32", BIG)], "float32"),
        ([("F64", BIG), ("F32", SMALL)], "float32"),
        ([("BF16", BIG)], "bfloat16"),
        ([("F16", BIG), ("F32", (64,))], "float16"),
        ([("BF16", BIG), ("F32", (64,))], "bfloat16"),
        ([("F16", BIG), ("F32", SMALL)], "float16"),
        ([("F16", SMALL), ("F32", BIG)], "float32"),
        ([("F16", BIG), ("BF16", SMALL)], "bfloat16"),
        ([("Q4_0", BIG), ("F16", BIG)], "bfloat16"),
        ([("Q8_0", BIG)], "bfloat16"),
        ([("F16", (8, 64, 64))], "float16"),
        ([("F32", (64,))], None),
        ([], None),
    ],
)
def test_the_type_that_loses_nothing(tensors: list[tuple[str, tuple[int, ...]]], dtype: str | None) -> None:
    assert exact_dtype(tensors) == dtype


def shard(path: Path, kind: str) -> None:
    size = 64 * 64 * SIZES[kind]
    text = json.dumps({path.stem: {"dtype": kind, "shape": [64, 64], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("F32", "float32"), ("BF16", "bfloat16")])
def test_a_folder_is_what_its_tensors_are_not_what_its_config_says(kind: str, dtype: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert read_facts(locate(tmp_path)).dtype == "float32"  # without weights (load_format dummy) the config's word
    names = ["a", "b"]
    for name in names:
        shard(tmp_path / f"{name}.safetensors", kind)
    index = {"weight_map": {name: f"{name}.safetensors" for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = locate(tmp_path)
    assert read_facts(files).dtype == dtype and count_numbers(files) == {kind: 2 * 64 * 64}
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"b\.safetensors"):
        read_facts(files)
    assert read_facts(files, random_weights=True).dtype == "float32"


@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("F32", "float32"), ("Q4_0", "bfloat16")])
def test_a_gguf_is_what_its_tensors_are_not_its_file_type(kind: str, dtype: str, tmp_path: Path) -> None:
    keys = {
        "block_count": 1, "embedding_length": 64, "feed_forward_length": 64, "attention.head_count": 4,
        "context_length": 64, "vocab_size": 4,
    }  # fmt: skip
    entries = [kv("general.architecture", STRING, "llama"), kv("general.file_type", U32, 1)]
    entries += [kv(f"llama.{key}", U32, value) for key, value in keys.items()]
    entries.append(kv("llama.attention.layer_norm_rms_epsilon", 6, 1e-5))
    size = {"F16": 512, "F32": 1024, "Q4_0": 8 * 18}[kind]
    at = size + -size % 32
    tensors = [tensor("token_embd.weight", [64, 4], GGUF_TYPES[kind], 0), tensor("output_norm.weight", [64], 0, at)]
    path = tmp_path / "m.gguf"
    path.write_bytes(File(keys=entries, tensors=tensors, data=bytes(at + 256)).build())
    assert read_facts(locate(path)).dtype == dtype
