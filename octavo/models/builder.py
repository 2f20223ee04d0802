"""Puts a decoder together from a checkpoint: embedding, blocks of attention and gated MLP with RMS norms, head. The
methods are the structure most families share; a family overrides what it has otherwise.

Reads layer after layer, so that only one tensor at a time exists in two forms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from octavo.kernels.layouts import Layout
from octavo.kernels.ops import HeadNorms, Ops
from octavo.layers.attention import Attention
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Head, Linear
from octavo.layers.mlp import MLP, GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import cos_sin_table
from octavo.modelfiles.facts import AttentionFacts, MLPFacts, ModelFacts, RopeFacts
from octavo.models.decoder import Block, Decoder, Mixer, PreNormBlock
from octavo.models.reader import Reader, gguf_name
from octavo.weights.checkpoint import Checkpoint

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"

IGNORABLE = (".rotary_emb.inv_freq",)
"""Old checkpoints store the frequencies, which follow from the config."""


class DecoderBuilder:
    """Names are those of Transformers. `gguf_parts`: what the parts of such names are called in a GGUF file; None: the
    file has the names themselves."""

    gguf_parts: ClassVar[Mapping[str, str] | None] = None

    def __init__(
        self, facts: ModelFacts, checkpoint: Checkpoint, ops: Ops, num_positions: int, dtype: torch.dtype
    ) -> None:
        """`dtype`: of the engine."""
        self.reader = Reader(checkpoint, self.stored_name)
        self.facts, self.ops, self.dtype = facts, ops, dtype
        self._file, self._num_positions = checkpoint.file, num_positions
        self._tables: dict[RopeFacts, Tensor] = {}

    def build(self) -> Decoder:
        """Raises ModelFileError for tensors that are missing, misshapen or left over."""
        facts, reader = self.facts, self.reader
        shared = self.shared_table()
        table = reader.matrix(shared or TABLE, facts.vocab_size, facts.hidden_size)
        if shared is not None:
            head = Head(self.ops, table)
            embedding = Embedding(self.ops, head.weight, self.embedding_scale())
        else:
            head = Head(self.ops, reader.matrix(HEAD, facts.vocab_size, facts.hidden_size))
            embedding = Embedding(self.ops, self.ops.prepare_table(table), self.embedding_scale())
        blocks = [self.block(i, f"model.layers.{i}") for i in range(facts.num_layers)]
        norm = self.norm("model.norm")
        reader.finish(IGNORABLE, self.beside())
        return Decoder(embedding, blocks, norm, head, shared is not None)

    def stored_name(self, name: str) -> str:
        """What the file calls a tensor."""
        return name if self.gguf_parts is None else gguf_name(name, self.gguf_parts)

    def beside(self) -> Sequence[str]:
        """How the names of tensors begin in the file that other models there have (of images, of drafts), which are not
        loaded."""
        return ()

    def embedding_scale(self) -> float:
        return self.facts.embedding_scale

    def shared_table(self) -> str | None:
        """The tensor that is the embedding's table and the head as well; None where they are two. A file that holds
        both with different values means both, whatever its config says, as for Transformers."""
        reader = self.reader
        if not self.facts.tie_embeddings:
            return None
        if not (reader.has(HEAD) and reader.has(TABLE)):
            return HEAD if reader.has(HEAD) else TABLE
        if not reader.same(TABLE, HEAD):
            return None
        reader.ignore(HEAD)
        return TABLE

    def cos_sin(self, rope: RopeFacts) -> Tensor:
        """One table for all layers with this rope."""
        if rope not in self._tables:
            factors = None
            if rope.has_factors:
                factors = self.reader.vector("rope_freqs.weight", rope.rotary_dim // 2).cpu()
            # Made on the CPU, so that the table has the same bits on every device.
            self._tables[rope] = cos_sin_table(rope, self._num_positions, factors).to(self.ops.device)
        return self._tables[rope]

    def block(self, layer: int, at: str) -> Block:
        return PreNormBlock(
            self.norm(f"{at}.input_layernorm"),
            self.mixer(layer, at),
            self.norm(f"{at}.post_attention_layernorm"),
            self.mlp(layer, f"{at}.mlp"),
        )

    def mixer(self, layer: int, at: str) -> Mixer:
        return self.attention(layer, f"{at}.self_attn")

    def mlp(self, layer: int, at: str) -> MLP:
        mlp, hidden = self.facts.layers[layer].mlp, self.facts.hidden_size
        assert isinstance(mlp, MLPFacts), "another kind of MLP is its family's own"
        gate_up = self.linear([f"{at}.gate_proj", f"{at}.up_proj"], mlp.inner_size, hidden, mlp.bias)
        down = self.linear([f"{at}.down_proj"], hidden, mlp.inner_size, mlp.bias)
        return GatedMLP(self.ops, gate_up, down, mlp.activation)

    def attention(self, layer: int, at: str) -> Attention:
        facts = self.facts.layers[layer].mixer
        assert isinstance(facts, AttentionFacts)
        norms = None
        if facts.head_norms:
            q, k = (self.norm_weight(f"{at}.{part}_norm", facts.head_dim) for part in ("q", "k"))
            norms = HeadNorms(q, k, self.facts.norm_eps)
        width = facts.num_heads * facts.head_dim
        out = self.linear([f"{at}.o_proj"], self.facts.hidden_size, width, facts.out_bias)
        kind, qkv = self.projection(facts, at)
        return kind(self.ops, facts, qkv, out, self.cos_sin(facts.rope), norms)

    def projection(self, facts: AttentionFacts, at: str) -> tuple[type[Attention], Linear]:
        """Of what attention is, and its product of q, k and v."""
        parts = [("q", facts.num_heads), ("k", facts.num_kv_heads), ("v", facts.num_kv_heads)]
        ordered = [(part, heads, self.row_order(part, heads, facts.head_dim)) for part, heads in parts]
        return Attention, self.stacked(facts, at, ordered)

    def stacked(self, facts: AttentionFacts, at: str, parts: Sequence[tuple[str, int, Tensor | None]]) -> Linear:
        """One product of several: each by the letter it is named by, its heads, and the order of its rows."""
        weights: list[Layout] = []
        biases: list[Tensor] = []
        for part, heads, order in parts:
            rows = heads * facts.head_dim
            weight = self.reader.matrix(f"{at}.{part}_proj.weight", rows, self.facts.hidden_size)
            weights.append(weight if order is None else weight.take_rows(order))
            if facts.qkv_bias:
                bias = self.reader.vector(f"{at}.{part}_proj.bias", rows, self.ops.activations)
                biases.append(bias if order is None else bias[order])
        return Linear(self.ops, weights, biases)

    def row_order(self, part: str, heads: int, head_dim: int) -> Tensor | None:
        """[rows] int64: which row of the stored q, k or v stands where; None: they stand in order."""
        return None

    def linear(self, names: list[str], rows: int, columns: int, bias: bool) -> Linear:
        weights = [self.reader.matrix(f"{name}.weight", rows, columns) for name in names]
        biases = [self.reader.vector(f"{name}.bias", rows, self.ops.activations) for name in names] if bias else []
        return Linear(self.ops, weights, biases)

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.ops, self.norm_weight(name, self.facts.hidden_size), self.facts.norm_eps)

    def norm_weight(self, name: str, size: int) -> Tensor:
        """[size] f32: what the normalized values are multiplied with."""
        return self.reader.vector(f"{name}.weight", size)
