"""Qwen2, Qwen2.5 and Qwen3, from safetensors and from GGUF: Llama's structure with biases on q, k and v alone (Qwen2),
or with norms of the heads of q and k (Qwen3)."""

from __future__ import annotations

from octavo.errors import ModelFileError
from octavo.kernels.ops import Ops
from octavo.modelfiles.facts import ModelFacts
from octavo.models.builder import DecoderBuilder, Family
from octavo.models.decoder import Decoder
from octavo.models.reader import Reader, gguf_name
from octavo.weights.checkpoint import Checkpoint

_QWEN2 = Family(qkv_bias=True)


def build_qwen2(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int) -> Decoder:
    """From names as Transformers writes them."""
    return DecoderBuilder(facts, Reader(checkpoint), ops, num_positions, _QWEN2).build(checkpoint.file)


def build_gguf_qwen2(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int) -> Decoder:
    """From a GGUF file, whose rows of q and k are in the order of the halves convention."""
    reader = _gguf(facts, checkpoint)
    return DecoderBuilder(facts, reader, ops, num_positions, _QWEN2).build(checkpoint.file)


def build_qwen3(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int) -> Decoder:
    """From names as Transformers writes them."""
    return DecoderBuilder(facts, Reader(checkpoint), ops, num_positions, _qwen3(facts)).build(checkpoint.file)


def build_gguf_qwen3(facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int) -> Decoder:
    """From a GGUF file, whose rows of q and k are in the order of the halves convention."""
    reader = _gguf(facts, checkpoint)
    return DecoderBuilder(facts, reader, ops, num_positions, _qwen3(facts)).build(checkpoint.file)


def _qwen3(facts: ModelFacts) -> Family:
    return Family(qkv_bias=facts.attention_bias, out_bias=facts.attention_bias, head_norms=True)


def _gguf(facts: ModelFacts, checkpoint: Checkpoint) -> Reader:
    """Only some layers of a Qwen with a window have it, and GGUF has no key that says which."""
    if facts.sliding_window is not None and facts.sliding_window < facts.max_position:
        key = f"{facts.architecture}.attention.sliding_window"
        raise ModelFileError(
            checkpoint.file, f"{key}: {facts.sliding_window}, but not in which layers; convert the model without it"
        )
    return Reader(checkpoint, gguf_name)
