"""Architecture name → who builds the model; the same names as in modelfiles/families.

Adding a model: its two files, a line here and one there, a parity test.
"""

from __future__ import annotations

import torch

from octavo.config.resolve import ResolvedConfig
from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import ModelFacts
from octavo.models import gemma3, llama, qwen, qwen3_5, qwen_moe
from octavo.models.builder import DecoderBuilder
from octavo.models.decoder import Model
from octavo.weights.checkpoint import Checkpoint

BUILDERS: dict[str, type[DecoderBuilder]] = {
    **llama.BUILDERS,
    **qwen.BUILDERS,
    **qwen_moe.BUILDERS,
    **qwen3_5.BUILDERS,
    **gemma3.BUILDERS,
}


def build(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, resolved: ResolvedConfig) -> Model:
    """Read the weights and put the model together. Raises ModelFileError: missing, misshapen or leftover tensors."""
    builder = BUILDERS[facts.architecture]
    return builder(facts, checkpoint, ops, resolved.max_model_len, getattr(torch, resolved.dtype)).build()
