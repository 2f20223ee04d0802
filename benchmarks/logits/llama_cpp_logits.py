"""Logits of llama.cpp at every position, for benchmarks/quality.py. Run by an interpreter that has llama-cpp-python:
MODEL.gguf IDS.npy OUT.npy [q8_0]. Default context parameters, or keys and values in Q8_0 (which llama.cpp does with
flash attention only); two threads; each window is evaluated from an empty cache.

IDS: int64 [windows, length]. OUT: f32 [windows * length, vocab]. Prints one JSON object: what computed them.
"""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np


def main(model: str, ids_path: str, out_path: str, kv: str = "") -> None:
    ids = np.load(ids_path)
    windows, length = ids.shape
    q8 = llama_cpp.GGML_TYPE_Q8_0
    pages = {"type_k": q8, "type_v": q8, "flash_attn": True} if kv == "q8_0" else {}
    llama = llama_cpp.Llama(
        model, n_ctx=length, n_threads=2, n_threads_batch=2, logits_all=True, verbose=False, **pages
    )
    out = np.lib.format.open_memmap(out_path, "w+", np.float32, (windows * length, llama.n_vocab()))
    for window in range(windows):
        llama.reset()
        llama.eval(ids[window].tolist())
        out[window * length : (window + 1) * length] = llama.scores[:length]
    out.flush()
    system = llama_cpp.llama_print_system_info().decode().strip()
    print(json.dumps({"name": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}", "system": system}))


if __name__ == "__main__":
    main(*sys.argv[1:])
