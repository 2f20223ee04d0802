"""Writes a Llama or Qwen3 of random weights as a GGUF file, for measuring speed at sizes that nobody wants to download.

    python benchmarks/random_model.py OUT.gguf --type Q4_0 --tokenizer SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/random_model.py OUT.gguf --shape Qwen3-0.6B --layers 4 --tokenizer SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/compare.py --only llama.cpp --model OUT.gguf --work prefill,decode

The shape is Llama-3.2-1B's (1.24 billion weights) unless told otherwise. Weights have a usual size, so that activations
and logits stay finite; embedding and head are Q8_0 in both types, as converters keep them finer. The tokenizer is that
of another GGUF file, filled up to the vocabulary with unused tokens. Tensors are written one at a time, in little
memory. Needs the `gguf` package.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from octavo.modelfiles.gguf import read_header

STD = 0.02
GROUP = 32
TYPES = {"Q4_0": Type.Q4_0, "Q8_0": Type.Q8_0}
COPIED = ("model", "pre", "merges", "bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id",
          "add_space_prefix", "add_bos_token")  # fmt: skip
"""Of the tokenizer's keys; tokens and their types are filled up."""


FINER = ("token_embd", "output")
"""Q8_0 in every file."""


@dataclass(frozen=True)
class Shape:
    architecture: str = "llama"
    layers: int = 16
    hidden: int = 2048
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 64
    inner: int = 8192
    vocab: int = 128256
    tied: bool = True
    theta: float = 500000.0
    eps: float = 1e-5

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """name, out_features, in_features."""
        yield "token_embd", self.vocab, self.hidden
        if not self.tied:
            yield "output", self.vocab, self.hidden
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for layer in range(self.layers):
            for name, n, k in (
                ("attn_q", q, self.hidden),
                ("attn_k", kv, self.hidden),
                ("attn_v", kv, self.hidden),
                ("attn_output", self.hidden, q),
                ("ffn_gate", self.inner, self.hidden),
                ("ffn_up", self.inner, self.hidden),
                ("ffn_down", self.hidden, self.inner),
            ):
                yield f"blk.{layer}.{name}", n, k

    def norms(self) -> Iterator[tuple[str, int]]:
        """name, features."""
        yield "output_norm", self.hidden
        for layer in range(self.layers):
            yield f"blk.{layer}.attn_norm", self.hidden
            yield f"blk.{layer}.ffn_norm", self.hidden
            if self.architecture == "qwen3":
                yield f"blk.{layer}.attn_q_norm", self.head_dim
                yield f"blk.{layer}.attn_k_norm", self.head_dim


SHAPES = {
    "Llama-3.2-1B": Shape(),
    "Llama-3.1-8B": Shape(layers=32, hidden=4096, head_dim=128, inner=14336, tied=False),
    "Qwen3-0.6B": Shape("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, theta=1e6, eps=1e-6),
}


def row_bytes(kind: Type, k: int) -> int:
    return k // GROUP * (18 if kind == Type.Q4_0 else 34)


def blocks(rng: np.random.Generator, kind: Type, n: int, k: int) -> np.ndarray[Any, Any]:
    """[n, bytes of a row] uint8: groups of 32 with one f16 scale, whose values have the standard deviation STD."""
    size = row_bytes(kind, GROUP)
    found = rng.integers(0, 256, (n * k // GROUP, size), dtype=np.uint8)
    spread = 4.61 if kind == Type.Q4_0 else 73.9  # of the integers -8..7, -128..127
    found[:, :2] = np.frombuffer(np.float16(STD / spread).tobytes(), dtype=np.uint8)
    return found.reshape(n, -1)


def add_header(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name(f"random {shape.architecture} of {shape.layers} layers")
    writer.add_block_count(shape.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_vocab_size(shape.vocab)


def add_tokenizer(writer: gguf.GGUFWriter, source: Path, vocab: int) -> None:
    metadata = read_header(source).metadata

    def value(name: str) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}")

    tokens, kinds = value("tokens"), value("token_type")
    if len(tokens) > vocab:
        raise SystemExit(f"{source} has {len(tokens)} tokens; give a vocabulary of as many or more")
    more = vocab - len(tokens)
    writer.add_token_list([*tokens, *(f"<unused_{i}>" for i in range(more))])
    writer.add_token_types([*kinds, *([gguf.TokenType.UNUSED] * more)])
    for name in COPIED:
        key, found = f"tokenizer.ggml.{name}", value(name)
        if isinstance(found, bool):
            writer.add_bool(key, found)
        elif isinstance(found, int):
            writer.add_uint32(key, found)
        elif isinstance(found, str):
            writer.add_string(key, found)
        elif found is not None:
            writer.add_array(key, found)


def write(out: Path, kind: Type, shape: Shape, tokenizer: Path, seed: int = 0) -> None:
    writer = gguf.GGUFWriter(out, shape.architecture)
    add_header(writer, shape)
    add_tokenizer(writer, tokenizer, shape.vocab)
    plan = [(name, Type.Q8_0 if name in FINER else kind, n, k) for name, n, k in shape.matrices()]
    for name, form, n, k in plan:
        width = row_bytes(form, k)
        writer.add_tensor_info(f"{name}.weight", (n, width), np.dtype(np.uint8), n * width, raw_dtype=form)
    for name, n in shape.norms():
        writer.add_tensor_info(f"{name}.weight", (n,), np.dtype(np.float32), n * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for _, form, n, k in plan:
        writer.write_tensor_data(blocks(rng, form, n, k))
    for _, n in shape.norms():
        writer.write_tensor_data(np.ones(n, dtype=np.float32))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=TYPES, default="Q4_0")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a GGUF file whose tokenizer is taken")
    parser.add_argument("--shape", choices=SHAPES, default="Llama-3.2-1B")
    sizes = [field.name for field in fields(Shape) if field.type == "int"]
    for name in sizes:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="in place of the shape's")
    args = parser.parse_args()
    changes = {name: getattr(args, name) for name in sizes if getattr(args, name) is not None}
    write(args.out, TYPES[args.type], replace(SHAPES[args.shape], **changes), args.tokenizer)


if __name__ == "__main__":
    main()
