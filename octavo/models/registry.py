"""Architecture name → the function that builds the model; the same names as in modelfiles/architectures.py.

Adding a model: its file, one line here (the name in config.json, and the GGUF's general.architecture), the keys it
reads in modelfiles/architectures.py, a parity test.
"""

from __future__ import annotations

from collections.abc import Callable

from octavo.config.resolve import ResolvedConfig
from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import ModelFacts
from octavo.models.decoder import Model
from octavo.models.llama import build_gguf_llama, build_llama
from octavo.models.qwen import build_gguf_qwen2, build_gguf_qwen3, build_qwen2, build_qwen3
from octavo.weights.checkpoint import Checkpoint

Builder = Callable[[ModelFacts, Checkpoint, Ops, int], Model]

BUILDERS: dict[str, Builder] = {
    "LlamaForCausalLM": build_llama,
    "MistralForCausalLM": build_llama,
    "Qwen2ForCausalLM": build_qwen2,
    "Qwen3ForCausalLM": build_qwen3,
    "llama": build_gguf_llama,
    "qwen2": build_gguf_qwen2,
    "qwen3": build_gguf_qwen3,
}


def build(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, resolved: ResolvedConfig) -> Model:
    """Read the weights and put the model together. Raises ModelFileError: missing, misshapen or leftover tensors."""
    return BUILDERS[facts.architecture](facts, checkpoint, ops, resolved.max_model_len)
