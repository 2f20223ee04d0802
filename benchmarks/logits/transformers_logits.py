"""Logits of Transformers in bf16 at every position, for benchmarks/quality.py. Run by an interpreter that has it:
FOLDER IDS.npy OUT.npy.

IDS: int64 [windows, length]. OUT: f32 [windows * length, vocab]. Prints one JSON object: what computed them.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import transformers


def main(folder: str, ids_path: str, out_path: str) -> None:
    ids = np.load(ids_path)
    windows, length = ids.shape
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    out = np.lib.format.open_memmap(out_path, "w+", np.float32, (windows * length, model.config.vocab_size))
    with torch.inference_mode():
        for window in range(windows):
            logits = model(torch.from_numpy(ids[window : window + 1])).logits[0].float()
            out[window * length : (window + 1) * length] = logits.numpy()
    out.flush()
    print(json.dumps({"name": "transformers", "version": transformers.__version__, "torch": torch.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
