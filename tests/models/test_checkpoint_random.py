"""Random weights in place of a file: any model of a folder with config.json runs, the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_worker import admit
from tiny_models import Paged, make_reference, resolved_config

from octavo.errors import ModelFileError
from octavo.kernels import registry
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import ModelFiles, locate
from octavo.models.registry import BUILDERS, build
from octavo.weights.random import STD, RandomCheckpoint
from octavo.wire.plan import Plan, Run
from octavo.worker.worker import Worker

CPU = torch.device("cpu")


NAMES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "qwen2_moe": "Qwen2Moe",
    "qwen3_moe": "Qwen3Moe", "qwen3_5": "Qwen3_5", "gemma3": "Gemma3",
}  # fmt: skip


def config_alone(kind: str, folder: Path, **changes: Any) -> ModelFiles:
    """A folder with config.json and no weights."""
    config = make_reference(kind, **changes).config.to_dict()
    name = NAMES[kind]
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [f"{name}ForCausalLM"]}))
    return locate(folder)


def test_all_architectures_of_folders_are_tried_here() -> None:
    tried = {f"{name}ForCausalLM" for name in NAMES.values()}
    assert {name for name in BUILDERS if name.endswith("ForCausalLM")} == tried


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", NAMES)
def test_a_model_of_random_weights(kind: str, dtype: str, tmp_path: Path) -> None:
    more = {"num_hidden_layers": 4} if kind == "qwen3_5" else {}  # the fourth is the first of attention
    files = config_alone(kind, tmp_path, hidden_size=256, num_attention_heads=4, intermediate_size=512, **more)
    facts, resolved = read_facts(files), resolved_config(dtype)
    ops = registry.choose(registry.Spec("cpu", dtype), "reference")
    with RandomCheckpoint("m", CPU, getattr(torch, dtype)) as checkpoint:
        model = build(facts, checkpoint, ops, resolved)
    logits = Paged.over(model, facts, resolved, ops).whole(list(range(100)))
    assert logits.isfinite().all() and 0.05 < logits.std() < 5.0
    assert len(set(logits.argmax(dim=-1).tolist())) > 5, "not one answer to all"


def test_a_tensor_depends_on_its_name_alone() -> None:
    one, other = (RandomCheckpoint("m", CPU, torch.bfloat16, seed=3) for _ in range(2))
    for checkpoint in (one, other):
        checkpoint.expect("a.weight", (300, 200))
        checkpoint.expect("b.weight", (300, 200))
    first = one.matrix("a.weight").data
    assert not torch.equal(other.matrix("b.weight").data, first)
    assert torch.equal(other.matrix("a.weight").data, first) and torch.equal(one.tensor("a.weight", first.dtype), first)
    assert first.dtype == torch.bfloat16 and abs(first.float().std().item() / STD - 1) < 0.02
    strange = RandomCheckpoint("m", CPU, torch.bfloat16, seed=4)
    strange.expect("a.weight", (300, 200))
    assert not torch.equal(strange.matrix("a.weight").data, first)


def test_norms_are_one_and_biases_small() -> None:
    checkpoint = RandomCheckpoint("m", CPU, torch.bfloat16)
    for name in ("model.norm.weight", "layers.0.self_attn.q_norm.weight", "rope_freqs.weight", "q_proj.bias"):
        checkpoint.expect(name, (64,))
        found = checkpoint.tensor(name, torch.float32)
        assert found.dtype == torch.float32
        assert (found == 1).all() if "bias" not in name else 0 < found.abs().max() < 0.2
    with pytest.raises(ModelFileError, match=r"m: tensor 'q_proj.bias': shape \[64\] is not a matrix"):
        checkpoint.matrix("q_proj.bias")
    with pytest.raises(ModelFileError, match="tensor 'c': no shape is known of it"):
        checkpoint.tensor("c", torch.float32)


def test_the_worker_runs_without_a_file(tmp_path: Path) -> None:
    files = config_alone("llama", tmp_path)
    with pytest.raises(ModelFileError, match=r"holds neither model\.safetensors"):
        Worker(resolved_config(), files).start()
    tokens = []
    for _ in range(2):
        worker = Worker(resolved_config(load_format="dummy"), files)
        assert worker.start().weights_bytes > 0
        result = worker.run(Plan(0, admit=[admit(0, [1, 2, 3, 4], [0])], run=[Run(0, 4, True)]))
        tokens.append(result.token_ids)
        worker.shutdown()
    assert tokens[0] == tokens[1]
