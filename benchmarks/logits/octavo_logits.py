"""Logits of Octavo at every position, for benchmarks/quality.py: MODEL IDS.npy OUT.npy DTYPE KV_CACHE_DTYPE [CHUNK].

The backend is chosen as the engine chooses it (OCTAVO_BACKEND and OCTAVO_CPU_ISA force one). CHUNK: tokens per step; by
default a window is one step.

IDS: int64 [windows, length]. OUT: f32 [windows * length, vocab]. Prints one JSON object: what computed them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import torch

import octavo
from octavo.config.engine import EngineConfig
from octavo.config.hardware import detect
from octavo.config.resolve import resolve
from octavo.env import forced_backend, forced_isa
from octavo.kernels import registry
from octavo.kernels.recorded import Runs
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import locate
from octavo.models.registry import build
from octavo.types import SamplingParams
from octavo.weights.checkpoint import open_checkpoint
from octavo.wire.plan import Admit
from octavo.worker import kv
from octavo.worker.batch import Batch
from octavo.worker.eager import EagerSteps
from octavo.worker.sampler import Sampler


def main(path: str, ids_path: str, out_path: str, dtype: str, kv_dtype: str, chunk: str = "") -> None:
    ids = np.load(ids_path)
    windows, length = ids.shape
    files = locate(Path(path))
    facts = read_facts(files)
    options = {"model": path, "dtype": dtype, "kv_cache_dtype": kv_dtype, "max_num_seqs": 1, "max_model_len": length}
    config = msgspec.convert({**options, "max_num_batched_tokens": length}, EngineConfig)
    resolved = resolve(config, detect(), facts, files.name)
    spec = registry.Spec(resolved.device, resolved.dtype, resolved.kv_cache_dtype, resolved.threads, forced_isa())
    ops = registry.choose(spec, forced_backend())
    with open_checkpoint(files) as checkpoint:
        model = build(facts, checkpoint, ops, resolved)
    blocks = list(range(-(-length // resolved.block_size)))
    groups = kv.sizes(facts, resolved, ops)
    batch = Batch(1, length, resolved.block_size, [group.window for group in groups])
    caches = kv.allocate(facts, resolved, ops, [len(blocks)] * len(groups))
    sampler = Sampler(ops, 1, facts.vocab_size, resolved.device)
    rows = batch.permanent(*sampler.settings)
    steps = ops.record(model, caches, rows, length, resolved.block_size) or EagerSteps(
        model, ops, caches, batch, facts.vocab_size
    )
    out = np.lib.format.open_memmap(out_path, "w+", np.float32, (windows * length, facts.vocab_size))
    with torch.inference_mode():
        for window in range(windows):
            batch.admit(Admit(0, ids[window].tolist(), length, 0, (blocks,) * len(groups), SamplingParams(), 0, [], []))
            for first in range(0, length, int(chunk or length)):
                count = min(int(chunk or length), length - first)
                steps.begin(Runs([0], [count], [False]), whole=True)
                hidden = steps.hidden()
                for at in range(0, count, steps.chunk):
                    logits = model.logits(hidden[at : min(at + steps.chunk, count)])
                    place = window * length + first + at
                    out[place : place + len(logits)] = logits.numpy()
                steps.advance(torch.empty(0, dtype=torch.int64))
            batch.release(0)
    out.flush()
    print(json.dumps({"name": "octavo", "version": octavo.__version__, "backend": ops.name, "notes": list(ops.notes)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
