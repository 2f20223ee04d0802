"""Tiny random models made with Transformers, saved as safetensors and as GGUF, and a way to run ours over pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from octavo.config.engine import EngineConfig
from octavo.config.resolve import ResolvedConfig
from octavo.kernels import registry
from octavo.kernels.ops import Ops
from octavo.kernels.recorded import Runs
from octavo.kernels.step import LayerCache
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import ModelFiles, locate
from octavo.models.decoder import Model
from octavo.models.registry import build
from octavo.types import SamplingParams
from octavo.weights.checkpoint import open_checkpoint
from octavo.wire.plan import Admit
from octavo.worker.batch import Batch
from octavo.worker.kv import allocate, states
from octavo.worker.parts import make_batch
from octavo.worker.step import gather

BLOCK_SIZE = 8
VOCAB = 160


def resolved_config(dtype: str = "float32", max_model_len: int = 128, **changes: Any) -> ResolvedConfig:
    values: dict[str, Any] = {
        "device": "cpu", "dtype": dtype, "max_model_len": max_model_len, "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "kv_cache_dtype": dtype, "kv_cache_memory": None, "memory_budget": 1 << 30, "threads": 1,
        "served_model_name": "tiny", "reasons": [],
    }  # fmt: skip
    derived = set(ResolvedConfig.__struct_fields__)
    options = {name: changes.pop(name) for name in list(changes) if name not in derived}
    config = EngineConfig(**{"block_size": BLOCK_SIZE, "max_queued_requests": 8, "seed": 0, **options})
    return ResolvedConfig(options=config, **{**values, **changes})


Reference = (
    Gemma3ForCausalLM | LlamaForCausalLM | MistralForCausalLM | Qwen2ForCausalLM | Qwen3ForCausalLM | Qwen3_5ForCausalLM
)
KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3_5": (Qwen3_5TextConfig, Qwen3_5ForCausalLM),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}


def make_reference(kind: str = "llama", **changes: Any) -> Reference:
    """Random weights of a size that makes logits differ clearly; 2 layers, 4 heads over 2 KV heads of 8."""
    torch.manual_seed(1)
    values: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    values.update(changes)
    config, architecture = KINDS[kind]
    model: Reference = architecture(config(**values))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model.float().eval()


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter stores q and k."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


_PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def save_gguf(model: Reference, path: Path, rope_freqs: Tensor | None = None, sliding_window: int = 0) -> ModelFiles:
    """As llama.cpp's converter does; only Llama's q and k are permuted."""
    config = model.config
    architecture = {"mistral": "llama", "gemma3_text": "gemma3"}.get(config.model_type, config.model_type)
    is_gemma = architecture == "gemma3"
    parts = {**_PARTS, **_GEMMA} if is_gemma else _PARTS
    rope = config.rope_parameters["full_attention"] if is_gemma else config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if sliding_window or is_gemma:
        writer.add_sliding_window(sliding_window or config.sliding_window)
    if architecture == "llama":
        writer.add_rope_dimension_count(head_dim)
    if head_dim != config.hidden_size // config.num_attention_heads:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    for name, tensor in model.state_dict().items():
        part, _, kind = name.rpartition(".")
        data = tensor.numpy() + 1 if is_gemma and part.endswith("norm") else tensor.numpy()
        if part.startswith("model.layers."):
            number, _, rest = part.removeprefix("model.layers.").partition(".")
            if architecture == "llama" and rest.endswith("q_proj"):
                data = permuted(data, config.num_attention_heads)
            elif architecture == "llama" and rest.endswith("k_proj"):
                data = permuted(data, config.num_key_value_heads)
            writer.add_tensor(f"blk.{number}.{parts[rest]}.{kind}", np.ascontiguousarray(data))
        elif not (part == "lm_head" and config.tie_word_embeddings):
            writer.add_tensor(f"{_TOP[part]}.{kind}", data)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return locate(path)


def save_safetensors(model: Reference, folder: Path) -> ModelFiles:
    model.save_pretrained(folder)
    return locate(folder)


@dataclass
class Paged:
    """Our model over pages in random order, operation by operation; every `run` is one step."""

    model: Model
    batch: Batch
    kv: list[LayerCache]
    free: list[int]

    @classmethod
    def load(cls, files: ModelFiles, dtype: str = "float32", max_model_len: int = 128, ops: Ops | None = None) -> Paged:
        """On the reference backend unless told otherwise."""
        facts, resolved = read_facts(files), resolved_config(dtype, max_model_len)
        ops = ops or registry.choose(registry.Spec("cpu", dtype), "reference")
        with open_checkpoint(files) as checkpoint:
            model = build(facts, checkpoint, ops, resolved)
        return cls.over(model, facts, resolved, ops)

    @classmethod
    def over(cls, model: Model, facts: Any, resolved: ResolvedConfig, ops: Ops) -> Paged:
        blocks = resolved.max_num_seqs * -(-resolved.max_model_len // BLOCK_SIZE)
        batch = make_batch(facts, resolved)
        free = torch.randperm(blocks, generator=torch.Generator().manual_seed(3)).tolist()
        return cls(
            model,
            batch,
            allocate(facts, resolved, ops, [blocks] * len(batch.windows), states(facts, resolved, ops)),
            free,
        )

    def admit(self, row: int, token_ids: list[int]) -> None:
        pages = [self.free.pop() for _ in range(-(-len(token_ids) // BLOCK_SIZE))]
        tables = tuple(pages[:: -1 if group % 2 else 1] for group in range(len(self.batch.windows)))  # not all alike
        self.batch.admit(Admit(row, token_ids, len(token_ids), 0, tables, SamplingParams(), 0, [], []))

    @torch.inference_mode()
    def run(self, lengths: dict[int, int]) -> dict[int, Tensor]:
        """row → number of tokens to compute; → row → logits [tokens, vocab]."""
        ends = {row: self.batch.num_computed[row] + n for row, n in lengths.items()}
        samples = [bool(ends[row] == self.batch.num_tokens[row]) for row in lengths]
        step = gather(self.batch, Runs(list(lengths), list(lengths.values()), samples))
        logits = self.model.logits(self.model(step, self.kv))
        for row, n in lengths.items():
            self.batch.num_computed[row] += n
        return dict(zip(lengths, logits.split(list(lengths.values())), strict=True))

    def whole(self, token_ids: list[int], chunks: list[int] | None = None) -> Tensor:
        """Logits of all positions of one sequence computed alone, in chunks."""
        self.batch.release(0)
        self.admit(0, token_ids)
        return torch.cat([self.run({0: n})[0] for n in chunks or [len(token_ids)]])
