"""Files as quantizers write them mix types within a layer: the model is the same as from the dequantized weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from octavo.kernels.reference.backend import ReferenceOps
from octavo.kernels.step import PagedCache, Step
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import locate
from octavo.models.registry import BUILDERS
from octavo.weights.checkpoint import open_checkpoint

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 256, 4, 2, 64, 64
TOKENS = [5, 9, 1, 63, 0, 17]


def shapes_of(head_dim: int) -> dict[str, tuple[int, int]]:
    """Of the matrices of one layer and its embedding, in sizes that every format can hold."""
    return {
        "token_embd": (VOCAB, HIDDEN),
        "blk.0.attn_q": (HEADS * head_dim, HIDDEN),
        "blk.0.attn_k": (KV_HEADS * head_dim, HIDDEN),
        "blk.0.attn_v": (KV_HEADS * head_dim, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HEADS * head_dim),
        "blk.0.ffn_gate": (512, HIDDEN),
        "blk.0.ffn_up": (512, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, 512),
    }


SHAPES = {"token_embd": (VOCAB, HIDDEN), "output": (VOCAB, HIDDEN), **shapes_of(HEAD_DIM)}
# Where the f16 scales of a block lie, and about how large they make its weights.
SCALES = {
    "Q2_K": ((80, 0.02), (82, 0.02)),
    "Q3_K": ((108, 0.002),),
    "Q4_K": ((0, 0.0005), (2, 0.002)),
    "Q5_K": ((0, 0.0003), (2, 0.002)),
    "Q6_K": ((208, 0.0001),),
    "IQ4_XS": ((0, 0.0001),),
    "IQ4_NL": ((0, 0.002),),
    "Q8_0": ((0, 0.002),),
    "Q4_1": ((0, 0.02), (2, -0.1)),
}
MIXES = {
    "as Q4_K_M": ["Q6_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q4_K", "Q6_K"],
    "as Q2_K": ["Q2_K", "Q6_K", "Q2_K", "Q2_K", "Q4_K", "Q3_K", "Q2_K", "Q4_K", "Q3_K"],
    "as Q5_K_M": ["Q5_K", "Q6_K", "Q5_K", "Q5_K", "Q6_K", "Q5_K", "Q5_K", "Q5_K", "Q6_K"],
    "all groups and layouts": ["Q8_0", "Q4_1", "IQ4_XS", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS", "Q3_K", "Q4_1"],
}


def blocks(kind: str, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    block, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    data = random.integers(0, 256, (shape[0] * shape[1] // block, nbytes), dtype=np.uint8)
    for at, scale in SCALES[kind]:
        data[:, at : at + 2] = (scale * random.uniform(0.5, 1, (len(data), 1))).astype(np.float16).view(np.uint8)
    return data.reshape(shape[0], -1)


def write(path: Path, mix: list[str], dense: bool) -> None:
    """The same weights, as blocks or dequantized by the gguf package."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (("block_count", 1), ("context_length", 64), ("embedding_length", HIDDEN)):
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.feed_forward_length", 512)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    for (name, shape), kind in zip(SHAPES.items(), mix, strict=True):
        number = GGMLQuantizationType[kind]
        data = blocks(kind, shape, random)
        if dense:
            writer.add_tensor(f"{name}.weight", gguf.quants.dequantize(data, number))
        else:
            writer.add_tensor(f"{name}.weight", data, raw_dtype=number)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", random.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path: Path, dtype: torch.dtype) -> Tensor:
    """[tokens, vocab] of TOKENS as one prompt."""
    count = len(TOKENS)
    step = Step(
        token_ids=torch.tensor(TOKENS),
        positions=torch.arange(count),
        slots=torch.arange(count),
        query_start=torch.tensor([0, count], dtype=torch.int32),
        context_lens=torch.tensor([count], dtype=torch.int32),
        page_start=torch.tensor([0, 1], dtype=torch.int32),
        page_ids=torch.tensor([0], dtype=torch.int32),
        logits_index=torch.arange(count),
        block_size=16,
        max_query_len=count,
        max_context_len=count,
        rows=torch.zeros(1, dtype=torch.int32),
    )
    files = locate(path)
    with open_checkpoint(files) as checkpoint, torch.inference_mode():
        model = BUILDERS["llama"](read_facts(files), checkpoint, ReferenceOps(dtype), 64, dtype).build()
        return model.logits(model(step, [PagedCache(0, torch.zeros(2, 2, 16, KV_HEADS, HEAD_DIM, dtype=dtype))]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mix", MIXES)
def test_mixed_types_equal_their_dequantized_weights(tmp_path: Path, mix: str, dtype: torch.dtype) -> None:
    write(tmp_path / "mixed.gguf", MIXES[mix], dense=False)
    write(tmp_path / "dense.gguf", MIXES[mix], dense=True)
    found, expected = logits(tmp_path / "mixed.gguf", dtype), logits(tmp_path / "dense.gguf", dtype)
    assert expected.std() > 0.01 and torch.isfinite(expected).all()
    assert torch.equal(found, expected)
