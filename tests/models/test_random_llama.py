"""benchmarks/random_llama.py: its files are models, with weights as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from octavo.modelfiles.facts import read_facts  # noqa: E402
from octavo.modelfiles.files import locate  # noqa: E402
from octavo.text.tokenizer import Tokenizer  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_a_file_of_random_weights(kind: str, tmp_path: Path, demo_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import random_llama

    shape = random_llama.Shape(layers=2, hidden=128, heads=4, kv_heads=2, head_dim=32, inner=256, vocab=49280)
    out = tmp_path / f"{kind}.gguf"
    random_llama.write(out, random_llama.TYPES[kind], shape, demo_gguf)
    files = locate(out)
    facts = read_facts(files)
    assert (facts.num_layers, facts.hidden_size, facts.head_dim, facts.vocab_size) == (2, 128, 32, 49280)
    assert facts.tie_embeddings
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    assert tensors["blk.1.ffn_down.weight"].tensor_type.name == kind
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    for name in ("token_embd.weight", "blk.1.ffn_down.weight"):
        values = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert abs(float(np.std(values)) - random_llama.STD) < 0.001
    tokenizer = Tokenizer.load(files)
    assert tokenizer.encode("The capital of France is") == Tokenizer.load(locate(demo_gguf)).encode(
        "The capital of France is"
    )
