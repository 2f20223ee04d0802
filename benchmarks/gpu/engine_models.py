"""Folders that hold a model of true shape without its weights, or with random ones: config.json, a tokenizer whose
vocabulary has the model's size, and where wanted model.safetensors."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from engine_work import Scene
from sizes import Model

POSITIONS = 16384
STD = 0.02


def config(model: Model, family: str) -> dict[str, Any]:
    """As Hugging Face writes it; `family`: llama or qwen3."""
    return {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}[family]],
        "model_type": family,
        "hidden_size": model.hidden,
        "intermediate_size": model.inner,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": model.tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": None,
        "initializer_range": STD,
    }


def family(name: str) -> str:
    return "qwen3" if name.startswith("Qwen3") else "llama"


def model_folder(scene: Scene, name: str, *, weights: bool = False) -> Path:
    """Made where there is none yet. `weights`: random ones on disk, in bf16."""
    folder = scene.folder / (name + ("-weights" if weights else ""))
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = scene.model(name)
        (folder / "config.json").write_text(json.dumps(config(model, family(name)), indent=1))
        write_tokenizer(folder, model.vocab)
        if weights:
            write_weights(folder, model, family(name), scene.device)
        (folder / "done").touch()
    return folder


def write_tokenizer(folder: Path, vocab: int) -> None:
    """Byte pairs merged at random: as large as a true one, and as slow to load."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    end = "<|end|>"
    draw, known, merges = random.Random(2), set(tokens), []
    while len(tokens) < vocab - 1:
        pair = tuple(tokens[draw.randrange(min(len(tokens), 2000))] for _ in range(2))
        text = "".join(pair)
        if text not in known:
            known.add(text)
            tokens.append(text)
            merges.append(pair)
    tokenizer = Tokenizer(BPE(vocab={text: i for i, text in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(end, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))


def write_weights(folder: Path, model: Model, family: str, device: str) -> None:
    """model.safetensors, drawn on `device`."""
    import torch
    from safetensors.torch import save_file

    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, device=device, dtype=torch.bfloat16) * STD).cpu()

    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    matrices = {
        "self_attn.q_proj": (q, model.hidden), "self_attn.k_proj": (kv, model.hidden),
        "self_attn.v_proj": (kv, model.hidden), "self_attn.o_proj": (model.hidden, q),
        "mlp.gate_proj": (model.inner, model.hidden), "mlp.up_proj": (model.inner, model.hidden),
        "mlp.down_proj": (model.hidden, model.inner),
    }  # fmt: skip
    norms = {"input_layernorm": model.hidden, "post_attention_layernorm": model.hidden}
    if family == "qwen3":
        norms |= {"self_attn.q_norm": model.head_dim, "self_attn.k_norm": model.head_dim}
    tensors = {"model.embed_tokens.weight": drawn(model.vocab, model.hidden)}
    tensors["model.norm.weight"] = torch.ones(model.hidden, dtype=torch.bfloat16)
    if not model.tied:
        tensors["lm_head.weight"] = drawn(model.vocab, model.hidden)
    for layer in range(model.layers):
        named = f"model.layers.{layer}."
        tensors |= {f"{named}{part}.weight": drawn(*shape) for part, shape in matrices.items()}
        tensors |= {f"{named}{part}.weight": torch.ones(n, dtype=torch.bfloat16) for part, n in norms.items()}
    save_file(tensors, folder / "model.safetensors")
