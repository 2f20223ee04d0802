"""Qwen2-MoE and Qwen3-MoE, from safetensors (a matrix for each expert) and from GGUF (all experts of a layer in one
tensor). Attention is Qwen2's and Qwen3's."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.kernels.layouts import Dense, Layout
from octavo.layers.experts import Experts, SharedExpert
from octavo.layers.linear import Linear
from octavo.layers.mlp import MLP, GatedMLP
from octavo.modelfiles.facts import ExpertsFacts
from octavo.models.builder import DecoderBuilder
from octavo.models.reader import GGUF_PARTS


class QwenMoe(DecoderBuilder):
    def mlp(self, layer: int, at: str) -> MLP:
        facts, hidden = self.facts.layers[layer].mlp, self.facts.hidden_size
        if not isinstance(facts, ExpertsFacts):
            return super().mlp(layer, at)
        inner = facts.inner_size
        router = self.reader.matrix(f"{at}.gate.weight", facts.count, hidden)
        gates, ups = (self.experts(at, f"{part}_proj", facts.count, inner, hidden) for part in ("gate", "up"))
        downs = [[down] for down in self.experts(at, "down_proj", facts.count, hidden, inner)]
        gate_up = list(zip(gates, ups, strict=True))
        shared = self.shared(at, facts.shared_size) if facts.shared_size else None
        return Experts(self.ops, router, gate_up, downs, facts.chosen, facts.renormalize, shared)

    def experts(self, at: str, part: str, count: int, rows: int, columns: int) -> Sequence[Layout]:
        return [self.reader.matrix(f"{at}.experts.{expert}.{part}.weight", rows, columns) for expert in range(count)]

    def shared(self, at: str, inner: int) -> SharedExpert:
        hidden, at = self.facts.hidden_size, f"{at}.shared_expert"
        gate_up = self.linear([f"{at}.gate_proj", f"{at}.up_proj"], inner, hidden, False)
        down = self.linear([f"{at}.down_proj"], hidden, inner, False)
        return SharedExpert(
            GatedMLP(self.ops, gate_up, down), Linear(self.ops, [self.shared_gate(f"{at}_gate.weight")])
        )

    def shared_gate(self, name: str) -> Layout:
        return self.reader.matrix(name, 1, self.facts.hidden_size)


_GGUF_PARTS = {
    **GGUF_PARTS,
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}


class GGUFQwenMoe(QwenMoe):
    gguf_parts = _GGUF_PARTS

    def experts(self, at: str, part: str, count: int, rows: int, columns: int) -> Sequence[Layout]:
        return self.reader.matrices(f"{at}.experts.{part}.weight", count, rows, columns)

    def shared_gate(self, name: str) -> Layout:
        """Stored as a vector."""
        return Dense(self.reader.vector(name, self.facts.hidden_size)[None])


BUILDERS = {
    "Qwen2MoeForCausalLM": QwenMoe,
    "Qwen3MoeForCausalLM": QwenMoe,
    "qwen2moe": GGUFQwenMoe,
    "qwen3moe": GGUFQwenMoe,
}
