"""Qwen3.5 (dense, text), from safetensors and from GGUF: gated delta nets, and every fourth layer gated attention. The
models for images and for drafts that files hold beside it are not loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from octavo.kernels.layouts import Layout
from octavo.layers.attention import Attention, GatedAttention
from octavo.layers.deltanet import DeltaWeights, GatedDeltaNet
from octavo.layers.linear import Linear
from octavo.modelfiles.facts import AttentionFacts, DeltaFacts
from octavo.models.builder import DecoderBuilder
from octavo.models.decoder import Mixer
from octavo.models.reader import GGUF_PARTS


class GGUFQwen35(DecoderBuilder):
    """A GGUF file has norms and decays as they are multiplied, and the heads of v in another order."""

    gguf_parts: ClassVar[Mapping[str, str] | None] = {
        **GGUF_PARTS,
        "post_attention_layernorm": "post_attention_norm",
        "linear_attn.in_proj_qkv": "attn_qkv",
        "linear_attn.in_proj_z": "attn_gate",
        "linear_attn.in_proj_b": "ssm_beta",
        "linear_attn.in_proj_a": "ssm_alpha",
        "linear_attn.conv1d": "ssm_conv1d",
        "linear_attn.norm": "ssm_norm",
        "linear_attn.out_proj": "ssm_out",
    }

    def beside(self) -> Sequence[str]:
        """Blocks for drafts stand behind those of the model."""
        return [name for name in self.reader.left if self._is_of_drafts(name)]

    def _is_of_drafts(self, name: str) -> bool:
        block = name.split(".")[1] if name.startswith("blk.") else ""
        return block.isdecimal() and int(block) >= self.facts.num_layers

    def mixer(self, layer: int, at: str) -> Mixer:
        facts = self.facts.layers[layer].mixer
        if isinstance(facts, DeltaFacts):
            return self.delta_net(layer, facts, f"{at}.linear_attn")
        return super().mixer(layer, at)

    def projection(self, facts: AttentionFacts, at: str) -> tuple[type[Attention], Linear]:
        """The rows of q come head by head with those of its gate."""
        dim, heads, kv_heads = facts.head_dim, facts.num_heads, facts.num_kv_heads
        rows = torch.arange(2 * heads * dim, device=self.ops.device).view(heads, 2, dim)
        of_q, of_gate = rows.transpose(0, 1).flatten(1)
        parts = [("q", 2 * heads, of_q), ("k", kv_heads, None), ("v", kv_heads, None), ("q", 2 * heads, of_gate)]
        return GatedAttention, self.stacked(facts, at, parts)

    def delta_net(self, layer: int, facts: DeltaFacts, at: str) -> GatedDeltaNet:
        hidden, reader, order = self.facts.hidden_size, self.reader, self.order(facts)

        def rows(name: str, count: int, index: Tensor | None) -> Layout:
            matrix = reader.matrix(f"{at}.{name}.weight", count, hidden)
            return matrix if index is None else matrix.take_rows(index)

        of_v = None if order is None else _spread(order, facts.v_dim)
        parts = [
            rows("in_proj_qkv", facts.channels, _behind(of_v, 2 * facts.keys)),
            rows("in_proj_z", facts.values, of_v),
            rows("in_proj_b", facts.v_heads, order),
            rows("in_proj_a", facts.v_heads, order),
        ]
        weights = DeltaWeights(
            _taken(self.convolution(f"{at}.conv1d.weight", facts), _behind(of_v, 2 * facts.keys)).t().contiguous(),
            _taken(self.decay(layer, facts.v_heads), order),
            _taken(self.dt_bias(layer, facts.v_heads), order),
            reader.vector(f"{at}.norm.weight", facts.v_dim),
        )
        out: Layout = reader.matrix(f"{at}.out_proj.weight", hidden, facts.values)
        if order is not None:
            out = out.take_columns(order, facts.v_dim)
        project, out_proj = Linear(self.ops, parts), Linear(self.ops, [out])
        return GatedDeltaNet(self.ops, facts, project, weights, out_proj, self.facts.norm_eps)

    def order(self, facts: DeltaFacts) -> Tensor | None:
        """[v_heads] int64: where the file has each head of v. It has the first head of every head of k, then the second
        of every one; the operation takes those of one head of k side by side."""
        if facts.v_heads == facts.k_heads:
            return None
        heads = torch.arange(facts.v_heads, device=self.ops.device)
        return heads.view(-1, facts.k_heads).t().flatten()

    def convolution(self, name: str, facts: DeltaFacts) -> Tensor:
        """[channels, taps] f32."""
        return self.reader.tensor(name, (facts.channels, facts.taps))

    def decay(self, layer: int, heads: int) -> Tensor:
        """[heads] f32, below 0."""
        return self.reader.vector(f"blk.{layer}.ssm_a", heads)

    def dt_bias(self, layer: int, heads: int) -> Tensor:
        return self.reader.vector(f"blk.{layer}.ssm_dt.bias", heads)


class Qwen35(GGUFQwen35):
    """A folder has norms less one, save that of the delta nets, and the logarithm of the decay."""

    gguf_parts: ClassVar[Mapping[str, str] | None] = None

    def beside(self) -> Sequence[str]:
        return ("mtp.", "model.visual.")

    def norm_weight(self, name: str, size: int) -> Tensor:
        return super().norm_weight(name, size) + 1.0

    def order(self, facts: DeltaFacts) -> Tensor | None:
        return None

    def convolution(self, name: str, facts: DeltaFacts) -> Tensor:
        return self.reader.tensor(name, (facts.channels, 1, facts.taps))[:, 0]

    def decay(self, layer: int, heads: int) -> Tensor:
        return -self.reader.vector(f"model.layers.{layer}.linear_attn.A_log", heads).exp()

    def dt_bias(self, layer: int, heads: int) -> Tensor:
        return self.reader.vector(f"model.layers.{layer}.linear_attn.dt_bias", heads)


class Qwen35OfImages(Qwen35):
    """The text model inside the one that takes images too."""

    def stored_name(self, name: str) -> str:
        return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def _spread(heads: Tensor, width: int) -> Tensor:
    """Places of heads → places of their features."""
    return (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()


def _behind(index: Tensor | None, first: int) -> Tensor | None:
    """`index` behind so many places that stay as they are."""
    return None if index is None else torch.cat([torch.arange(first, device=index.device), index + first])


def _taken(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else x[index]


BUILDERS = {"Qwen3_5ForCausalLM": Qwen35, "Qwen3_5ForConditionalGeneration": Qwen35OfImages, "qwen35": GGUFQwen35}
