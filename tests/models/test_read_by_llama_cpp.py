"""The GGUF files that tests write mean to llama.cpp what they mean here: a reader that is tested by its own writer
alone proves nothing. OCTAVO_TEST_LLAMA_PYTHON names an interpreter with llama-cpp-python; else this is skipped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import test_gemma3 as gemma3
import test_qwen3_5_files as qwen3_5
import test_qwen_moe as qwen_moe
import torch
from gguf import GGMLQuantizationType
from test_llama import random_ids
from tiny_models import Paged, make_reference, save_gguf

from octavo.modelfiles.files import ModelFiles

PYTHON = os.environ.get("OCTAVO_TEST_LLAMA_PYTHON")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(PYTHON is None, reason="OCTAVO_TEST_LLAMA_PYTHON names no interpreter with llama-cpp-python"),
]
SCRIPT = Path(__file__).with_name("llama_cpp_logits.py")


def dense(kind: str, **changes: Any) -> Callable[[Path], ModelFiles]:
    """Widths that go into blocks of 32."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, **changes}
    return lambda path: save_gguf(make_reference(kind, **sizes), path)


FACTORS = torch.tensor([1.0, 1.0, 2.0, 8.0])
SCALED = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
FILES: dict[str, tuple[Callable[[Path], ModelFiles], float]] = {
    "llama": (dense("llama"), 2e-4),
    "llama, scaled": (dense("llama", rope_parameters=SCALED), 2e-4),
    "llama, tied": (dense("llama", tie_word_embeddings=True), 2e-4),
    "llama, factors of the rope": (lambda path: save_gguf(make_reference(), path, rope_freqs=FACTORS), 2e-4),
    "qwen2": (dense("qwen2"), 2e-4),
    "qwen3": (dense("qwen3", head_dim=16), 2e-4),
    # Its GELU is a table in f16: 2e-2 apart on test_gemma3's usual model, 2e-3 from Transformers with such a one.
    "gemma3": (
        dense("gemma3", num_hidden_layers=7, head_dim=16, sliding_window=11, query_pre_attn_scalar=16,
              tie_word_embeddings=True),
        5e-2,
    ),
    "gemma3, head of its own": (lambda path: save_gguf(gemma3.make("head of its own"), path), 5e-2),
    "qwen2_moe": (lambda path: qwen_moe.save_gguf(qwen_moe.make("qwen2"), path), 2e-4),
    "qwen3_moe": (lambda path: qwen_moe.save_gguf(qwen_moe.make("qwen3"), path), 2e-4),
    "qwen3_5": (lambda path: qwen3_5.save_gguf(qwen3_5.make(2), path), 2e-3),
    "qwen3_5, heads of v in another order": (lambda path: qwen3_5.save_gguf(qwen3_5.make(6), path), 2e-3),
    "qwen3_5, in halves": (lambda path: qwen3_5.save_gguf(qwen3_5.make(4), path, GGMLQuantizationType.F16), 2e-2),
}  # fmt: skip
"""And how far its f32 may be from ours."""


@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_llama_cpp(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, tolerance = FILES[name]
    header = gguf.GGUFWriter.write_header_to_file

    def without_a_vocabulary(self: gguf.GGUFWriter, *args: Any) -> None:
        self.add_tokenizer_model("none")
        header(self, *args)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", without_a_vocabulary)
    files, ids, out = write(tmp_path / "tiny.gguf"), random_ids(40), tmp_path / "logits.npy"
    command = [str(PYTHON), str(SCRIPT), str(files.path), ",".join(map(str, ids)), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = torch.from_numpy(np.load(out))
    found = Paged.load(files).whole(ids)
    assert found.shape == wanted.shape and (found - wanted).abs().max() < tolerance
