"""Gemma 3 against Transformers on tiny random models: logits from safetensors and from GGUF, whole and in chunks,
greedy tokens through the worker; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity import greedy_side_by_side, whole_and_in_chunks
from test_llama import agree, expected, random_ids
from test_worker import BACKENDS
from tiny_models import Paged, make_reference, save_gguf, save_safetensors

from octavo.errors import ModelFileError
from octavo.kernels import registry
from octavo.kernels.registry import Spec
from octavo.modelfiles.config_facts import config_facts
from octavo.modelfiles.facts import read_facts

SLIDING, FULL = "sliding_attention", "full_attention"
ROPES = {
    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    SLIDING: {"rope_type": "default", "rope_theta": 5000.0},
}
BASE: dict[str, Any] = {"num_hidden_layers": 7, "head_dim": 16, "sliding_window": 11, "tie_word_embeddings": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "usual": BASE,
    "scaled": {**BASE, "query_pre_attn_scalar": 40, "rms_norm_eps": 0.1},
    "head of its own": {**BASE, "tie_word_embeddings": False},
    "ropes": {**BASE, "rope_parameters": ROPES},
    "kinds of layers": {**BASE, "num_hidden_layers": 3, "layer_types": [FULL, SLIDING, SLIDING]},
    "biases": {**BASE, "num_hidden_layers": 3, "attention_bias": True},
    "odd heads": {
        **BASE,
        "num_hidden_layers": 2,
        "hidden_size": 30,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
    },
}  # fmt: skip
GGUF_VARIANTS = ["usual", "head of its own"]
"""What the keys of a GGUF file can say."""
NATIVE = pytest.param("cpu", marks=pytest.mark.skipif("cpu" not in BACKENDS, reason="the native kernels are not built"))


def make(variant: str) -> Any:
    return make_reference("gemma3", **{"query_pre_attn_scalar": 16, **VARIANTS[variant]})


@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("variant", VARIANTS)
def test_safetensors_logits(variant: str, backend: str, tmp_path: Path) -> None:
    reference, ops = make(variant), registry.choose(Spec("cpu", "float32"), backend)
    whole_and_in_chunks(Paged.load(save_safetensors(reference, tmp_path), ops=ops), reference)


@pytest.mark.parametrize("variant", GGUF_VARIANTS)
def test_gguf_logits(variant: str, tmp_path: Path) -> None:
    reference, ids = make(variant), random_ids(50)
    files = save_gguf(reference, tmp_path / "tiny.gguf")
    assert read_facts(files).architecture == "gemma3"
    agree(Paged.load(files).whole(ids, [20, 30]), expected(reference, ids))


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
@pytest.mark.parametrize("backend", ["reference", NATIVE])
def test_greedy_tokens_are_those_of_transformers(
    backend: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in chunks beside decodes, through the worker: on the CPU one recorded call a step."""
    monkeypatch.setenv("OCTAVO_BACKEND", backend)
    reference = make("usual")
    files = (
        save_safetensors(reference, tmp_path) if form == "safetensors" else save_gguf(reference, tmp_path / "m.gguf")
    )
    greedy_side_by_side(files, reference, 28, groups=2)


def test_half_precision_scales_embeddings_as_the_reference_does(tmp_path: Path) -> None:
    """By a factor that has the type of the weights: sqrt(30) is 5.46875 in bfloat16."""
    reference, ids = make("odd heads").bfloat16(), torch.tensor(random_ids(20))
    model = Paged.load(save_safetensors(reference, tmp_path), "bfloat16").model
    with torch.inference_mode():
        assert torch.equal(model._embedding(ids), reference.model.embed_tokens(ids))  # type: ignore[attr-defined]


CONFIG = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}


def test_ropes_of_older_files() -> None:
    old = {**CONFIG, "rope_theta": 2e6, "rope_local_base_freq": 9000.0, "sliding_window_pattern": 2}
    facts = config_facts({**old, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "config.json")
    (local, whole, *_) = (layer.mixer for layer in facts.layers)
    assert (local.window, local.rope.theta, local.rope.scaling) == (4096, 9000.0, None)
    assert (whole.window, whole.rope.theta, whole.rope.factor) == (None, 2e6, 8.0)
    assert facts.embedding_scale == 48.0 and whole.scale == 256**-0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: is not supported yet"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention: only causal attention"),
        ({"hidden_activation": "silu"}, "hidden_activation: 'silu' is not supported here"),
        ({"sliding_window": None}, "layer_types: names sliding_attention, and there is no sliding_window"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        config_facts({**CONFIG, **changes}, "config.json")
