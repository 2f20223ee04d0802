"""benchmarks/random_model.py: its files are models, with weights as it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import Paged

from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import locate
from octavo.modelfiles.gguf import read_header
from octavo.text.tokenizer import Tokenizer
from octavo.weights.checkpoint import open_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("like", "kind", "tied"), [("Llama-3.2-1B", "Q4_0", True), ("Qwen3-0.6B", "Q8_0", False)], ids=["llama", "qwen3"]
)
def test_a_file_of_random_weights(
    like: str, kind: str, tied: bool, tmp_path: Path, demo_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both types, with and without a head of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import random_model

    small = {"layers": 2, "hidden": 128, "heads": 4, "kv_heads": 2, "head_dim": 64, "inner": 256, "vocab": 49280}
    shape = replace(random_model.SHAPES[like], **small, tied=tied)
    out = tmp_path / f"{kind}.gguf"
    random_model.write(out, random_model.TYPES[kind], shape, demo_gguf)
    files = locate(out)
    facts = read_facts(files)
    assert (facts.num_layers, facts.hidden_size, facts.attention.head_dim, facts.vocab_size) == (2, 128, 64, 49280)
    assert (facts.tie_embeddings, facts.architecture) == (tied, shape.architecture)
    model = Paged.load(files, max_model_len=64)
    assert model.whole([1, 2, 3]).isfinite().all()
    tensors = read_header(out).tensors
    assert tensors["blk.1.ffn_down.weight"].type == random_model.TYPES[kind]
    assert tensors["token_embd.weight"].type == random_model.TYPES["Q8_0"]
    with open_checkpoint(files) as checkpoint:
        for name in ("token_embd.weight", "blk.1.ffn_down.weight"):
            assert abs(checkpoint.tensor(name, torch.float32).std() - random_model.STD) < 0.001
    tokenizer = Tokenizer.load(files)
    assert tokenizer.encode("The capital of France is") == Tokenizer.load(locate(demo_gguf)).encode(
        "The capital of France is"
    )
