"""Logits of llama.cpp in f32 at every position of a sequence, for test_read_by_llama_cpp.py. Run by an interpreter that
has llama-cpp-python: MODEL.gguf ID,ID,... OUT (f32 [positions, vocab], as numpy saves it)."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp
import numpy as np


def main(path: str, ids: str, out: str) -> None:
    tokens = [int(token) for token in ids.split(",")]
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    assert model, f"llama.cpp does not load {path}"
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = 128, 128, 128, 1, 1
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, params)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for at, token in enumerate(tokens):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = (
            token,
            at,
            1,
            0,
            True,
        )
    assert llama_cpp.llama_decode(context, batch) == 0
    found = llama_cpp.llama_get_logits(context)
    array = np.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (len(tokens), vocab))
    np.save(out, array)


if __name__ == "__main__":
    main(*sys.argv[1:])
