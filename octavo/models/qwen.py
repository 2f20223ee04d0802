"""Qwen2, Qwen2.5 and Qwen3, from safetensors and from GGUF: Llama's structure with biases on q, k and v alone (Qwen2),
or with norms of the heads of q and k (Qwen3)."""

from __future__ import annotations

from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import ModelFacts
from octavo.models.builder import DecoderBuilder, Family
from octavo.models.decoder import Decoder
from octavo.models.reader import Reader, gguf_name
from octavo.weights.checkpoint import Checkpoint

_QWEN2, _QWEN3 = Family(), Family(head_norms=True)


def build_qwen2(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int) -> Decoder:
    """From names as Transformers writes them."""
    return DecoderBuilder(facts, Reader(checkpoint), ops, num_positions, _QWEN2).build(checkpoint.file)


def build_gguf_qwen2(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int) -> Decoder:
    """From a GGUF file, whose rows of q and k are in the order of the halves convention."""
    return DecoderBuilder(facts, Reader(checkpoint, gguf_name), ops, num_positions, _QWEN2).build(checkpoint.file)


def build_qwen3(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int) -> Decoder:
    """From names as Transformers writes them."""
    return DecoderBuilder(facts, Reader(checkpoint), ops, num_positions, _QWEN3).build(checkpoint.file)


def build_gguf_qwen3(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int) -> Decoder:
    """From a GGUF file, whose rows of q and k are in the order of the halves convention."""
    return DecoderBuilder(facts, Reader(checkpoint, gguf_name), ops, num_positions, _QWEN3).build(checkpoint.file)
