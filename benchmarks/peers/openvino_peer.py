"""OpenVINO GenAI on a GGUF file (or an OpenVINO folder), with its continuous batching. Prompts go in as token ids."""

from __future__ import annotations

import importlib.metadata
import time

import numpy as np
import openvino
import openvino_genai as genai
from work import Run, arguments, measure, prompts, threads

CACHE_GB = 2


class Peer:
    def __init__(self, path: str) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.cache_size, scheduler.enable_prefix_caching = 64, CACHE_GB, False
        properties = {"INFERENCE_NUM_THREADS": threads()}
        self._pipeline = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
        self._vocab_size = len(self._pipeline.get_tokenizer().get_vocab())

    def run(self, streams: int, input_len: int, output_len: int) -> Run:
        config = genai.GenerationConfig()
        config.ignore_eos, config.do_sample, config.max_new_tokens = True, False, output_len
        ids = prompts(streams, input_len, self._vocab_size)
        given = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in ids]
        started = time.perf_counter()
        found = self._pipeline.generate(given, [config] * streams)
        seconds = time.perf_counter() - started
        return Run(streams * input_len, sum(len(each.m_generation_ids[0]) for each in found), seconds)


if __name__ == "__main__":
    args = arguments(__doc__)
    peer = Peer(str(args.model))
    measure(peer.run, args.work, {"openvino-genai": importlib.metadata.version("openvino-genai")})
