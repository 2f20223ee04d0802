"""Puts a decoder of the usual structure together: embedding, blocks of attention and gated MLP with RMS norms, head.
Called by the model files, which say in a `Family` what the facts do not.

Reads layer after layer, so that only one tensor at a time exists in two forms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.layouts import Layout
from octavo.kernels.ops import HeadNorms, Ops
from octavo.layers.attention import Attention, AttentionShape
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Head, Linear
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rope import cos_sin_table
from octavo.modelfiles.facts import ModelFacts
from octavo.models.decoder import Block, Decoder
from octavo.models.reader import Reader

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"

IGNORABLE = (".rotary_emb.inv_freq",)
"""Old checkpoints store the frequencies, which follow from the config."""


@dataclass(frozen=True)
class Family:
    """What tells this family's attention from others'. `head_norms`: each head of q and k is normalized before it is
    rotated. `permuted`: the file stores the rows of q and k in the order of the interleaved rotary convention."""

    head_norms: bool = False
    permuted: bool = False


class DecoderBuilder:
    def __init__(self, facts: ModelFacts, reader: Reader, ops: Ops, num_positions: int, family: Family) -> None:
        self.facts, self.reader, self.ops = facts, reader, ops
        self.num_positions, self.family = num_positions, family

    def build(self, file: str) -> Decoder:
        """Raises ModelFileError for what the file asks and this structure has not, and for tensors left over."""
        facts, reader = self.facts, self.reader
        factors = None
        if facts.rope.has_factors:
            factors = reader.vector("rope_freqs.weight", facts.rope.rotary_dim // 2).cpu()
        # Made on the CPU, so that the table has the same bits on every device.
        cos_sin = cos_sin_table(facts.rope, self.num_positions, factors).to(self.ops.device)
        shared = self.shared_table()
        table = reader.matrix(shared or TABLE, facts.vocab_size, facts.hidden_size)
        if shared is not None:
            head = Head(self.ops, table)
            embedding = Embedding(self.ops, head.weight)
        else:
            head = Head(self.ops, reader.matrix(HEAD, facts.vocab_size, facts.hidden_size))
            embedding = Embedding(self.ops, self.ops.prepare_table(table))
        blocks = [self.block(i, cos_sin) for i in range(facts.num_layers)]
        norm = self.norm("model.norm")
        reader.finish(IGNORABLE)
        return Decoder(embedding, blocks, norm, head, shared is not None)

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

    def block(self, layer: int, cos_sin: Tensor) -> Block:
        facts, at = self.facts, f"model.layers.{layer}"
        hidden, inner = facts.hidden_size, facts.intermediate_size
        gate_up = self.linear([f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"], inner, hidden, facts.mlp_bias)
        down = self.linear([f"{at}.mlp.down_proj"], hidden, inner, facts.mlp_bias)
        return Block(
            self.norm(f"{at}.input_layernorm"),
            self.attention(layer, cos_sin),
            self.norm(f"{at}.post_attention_layernorm"),
            GatedMLP(self.ops, gate_up, down),
        )

    def attention(self, layer: int, cos_sin: Tensor) -> Attention:
        facts, at = self.facts, f"model.layers.{layer}.self_attn"
        dim, window = facts.head_dim, facts.window_of(layer)
        shape = AttentionShape(facts.num_heads, facts.num_kv_heads, dim, dim**-0.5, window)
        norms = None
        if self.family.head_norms:
            q, k = (self.reader.vector(f"{at}.{part}_norm.weight", dim) for part in ("q", "k"))
            norms = HeadNorms(q, k, facts.norm_eps)
        return Attention(self.ops, shape, self.qkv(at), self.out(at), cos_sin, norms)

    def qkv(self, at: str) -> Linear:
        facts = self.facts
        weights: list[Layout] = []
        biases: list[Tensor] = []
        for part, heads in (("q", facts.num_heads), ("k", facts.num_kv_heads), ("v", facts.num_kv_heads)):
            rows = heads * facts.head_dim
            order = self.unpermuted(heads) if self.family.permuted and part != "v" else None
            weight = self.reader.matrix(f"{at}.{part}_proj.weight", rows, facts.hidden_size)
            weights.append(weight if order is None else weight.take_rows(order))
            if facts.qkv_bias:
                bias = self.reader.vector(f"{at}.{part}_proj.bias", rows, self.ops.activations)
                biases.append(bias if order is None else bias[order])
        return Linear(self.ops, weights, biases)

    def out(self, at: str) -> Linear:
        facts = self.facts
        return self.linear([f"{at}.o_proj"], facts.hidden_size, facts.num_heads * facts.head_dim, facts.out_bias)

    def linear(self, names: list[str], rows: int, columns: int, bias: bool) -> Linear:
        weights = [self.reader.matrix(f"{name}.weight", rows, columns) for name in names]
        biases = [self.reader.vector(f"{name}.bias", rows, self.ops.activations) for name in names] if bias else []
        return Linear(self.ops, weights, biases)

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.ops, self.reader.vector(f"{name}.weight", self.facts.hidden_size), self.facts.norm_eps)

    def unpermuted(self, heads: int) -> Tensor:
        """Row order that turns pairs (x0, y0, x1, y1, ...) of each head into halves (x0, x1, ..., y0, y1, ...)."""
        rows = torch.arange(heads * self.facts.head_dim, device=self.ops.device)
        return rows.view(heads, self.facts.head_dim // 2, 2).transpose(1, 2).flatten()
