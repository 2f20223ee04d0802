"""Hugging Face Transformers on a safetensors folder, in bf16."""

from __future__ import annotations

import time

import torch
import transformers
from transformers import AutoModelForCausalLM
from work import Run, arguments, measure, prompts, threads


class Peer:
    def __init__(self, path: str) -> None:
        torch.set_num_threads(threads())
        transformers.logging.set_verbosity_error()
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)

    @torch.inference_mode()
    def run(self, streams: int, input_len: int, output_len: int) -> Run:
        given = torch.tensor(prompts(streams, input_len, self._model.config.vocab_size))
        started = time.perf_counter()
        found = self._model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=output_len,
            min_new_tokens=output_len,
            do_sample=False,
        )
        seconds = time.perf_counter() - started
        return Run(given.numel(), found.numel() - given.numel(), seconds)


if __name__ == "__main__":
    args = arguments(__doc__)
    peer = Peer(str(args.model))
    measure(peer.run, args.work, {"transformers": transformers.__version__, "torch": torch.__version__})
