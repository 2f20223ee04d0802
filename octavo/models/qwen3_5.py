"""Qwen3.5 (dense, text), from safetensors: gated delta nets, and every fourth layer gated attention."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.layers.attention import Attention, GatedAttention
from octavo.layers.deltanet import DeltaWeights, GatedDeltaNet
from octavo.layers.linear import Linear
from octavo.modelfiles.facts import AttentionFacts, DeltaFacts
from octavo.models.builder import DecoderBuilder
from octavo.models.decoder import Mixer


class Qwen35(DecoderBuilder):
    """A folder has norms less one, save that of the delta nets, and the logarithm of the decay."""

    def mixer(self, layer: int, at: str) -> Mixer:
        facts = self.facts.layers[layer].mixer
        if isinstance(facts, DeltaFacts):
            return self.delta_net(facts, f"{at}.linear_attn")
        return super().mixer(layer, at)

    def norm_weight(self, name: str, size: int) -> Tensor:
        return super().norm_weight(name, size) + 1.0

    def projection(self, facts: AttentionFacts, at: str) -> tuple[type[Attention], Linear]:
        """The rows of q come head by head with those of its gate."""
        dim, heads, kv_heads = facts.head_dim, facts.num_heads, facts.num_kv_heads
        rows = torch.arange(2 * heads * dim, device=self.ops.device).view(heads, 2, dim)
        of_q, of_gate = rows.transpose(0, 1).flatten(1)
        parts = [("q", 2 * heads, of_q), ("k", kv_heads, None), ("v", kv_heads, None), ("q", 2 * heads, of_gate)]
        return GatedAttention, self.stacked(facts, at, parts)

    def delta_net(self, facts: DeltaFacts, at: str) -> GatedDeltaNet:
        hidden, reader = self.facts.hidden_size, self.reader
        rows = {"in_proj_qkv": facts.channels, "in_proj_z": facts.values, "in_proj_b": facts.v_heads}
        rows["in_proj_a"] = facts.v_heads
        parts = [reader.matrix(f"{at}.{name}.weight", count, hidden) for name, count in rows.items()]
        weights = DeltaWeights(
            self.convolution(f"{at}.conv1d.weight", facts),
            self.decay(at, facts.v_heads),
            self.dt_bias(at, facts.v_heads),
            reader.vector(f"{at}.norm.weight", facts.v_dim),
        )
        out = reader.matrix(f"{at}.out_proj.weight", hidden, facts.values)
        project, out_proj = Linear(self.ops, parts), Linear(self.ops, [out])
        return GatedDeltaNet(self.ops, facts, project, weights, out_proj, self.facts.norm_eps)

    def convolution(self, name: str, facts: DeltaFacts) -> Tensor:
        """[taps, channels] f32."""
        return self.reader.tensor(name, (facts.channels, 1, facts.taps))[:, 0].t().contiguous()

    def decay(self, at: str, heads: int) -> Tensor:
        return -self.reader.vector(f"{at}.A_log", heads).exp()

    def dt_bias(self, at: str, heads: int) -> Tensor:
        return self.reader.vector(f"{at}.dt_bias", heads)


BUILDERS = {"Qwen3_5ForCausalLM": Qwen35}
