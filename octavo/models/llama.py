"""Llama, Mistral and what shares their structure (SmolLM, SmolLM2, ...), from safetensors and from GGUF."""

from __future__ import annotations

from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import ModelFacts
from octavo.models.builder import DecoderBuilder, Family
from octavo.models.decoder import Decoder
from octavo.models.reader import Reader, gguf_name
from octavo.weights.checkpoint import Checkpoint


def build_llama(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int) -> Decoder:
    """From names as Transformers writes them."""
    return DecoderBuilder(facts, Reader(checkpoint), ops, num_positions, Family()).build(checkpoint.file)


def build_gguf_llama(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int) -> Decoder:
    """From a GGUF file, which stores the rows of q and k in the order of the interleaved rotary convention."""
    family = Family(permuted=True)
    return DecoderBuilder(facts, Reader(checkpoint, gguf_name), ops, num_positions, family).build(checkpoint.file)
