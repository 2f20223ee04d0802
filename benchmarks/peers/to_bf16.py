"""Writes a GGUF file as a bf16 safetensors folder, dequantized by Transformers. Usage: FILE.gguf FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(file: Path, folder: Path) -> None:
    """`folder` appears when it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    home = str(file.parent)
    tokenizer = AutoTokenizer.from_pretrained(home, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        home, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
