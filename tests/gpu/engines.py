"""Engines on a GPU, or on a device that only defers its work; and what Transformers says about their tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from fake_device import FakeDevice

from octavo import LLMEngine
from octavo.client.fake import write_byte_tokenizer
from octavo.config.engine import EngineConfig
from octavo.config.hardware import detect
from octavo.config.resolve import resolve
from octavo.executor.inline import InlineExecutor
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.hub import fetch

HAS_GPU = torch.cuda.is_available()
NO_GPU = pytest.mark.skipif(not HAS_GPU, reason="no GPU")
VOCAB = 320
DEFAULTS: dict[str, Any] = {
    "dtype": "float32", "max_model_len": 128, "max_num_seqs": 8, "max_num_batched_tokens": 64, "block_size": 8,
    "kv_cache_memory": "4MiB", "prefix_cache": False, "seed": 5,
}  # fmt: skip


@contextmanager
def engine(
    device: str, folder: Path, *, graphs: bool = True, overlap: bool = True, backend: str = "reference", **options: Any
) -> Iterator[Any]:
    """`device`: cuda or fake; the fake one computes with `backend`."""
    values = {**DEFAULTS, **options}
    if device == "cuda":
        with LLMEngine(
            str(folder), device="cuda", enforce_eager=not graphs, async_scheduling=overlap, **values
        ) as found:
            yield found
        return
    config = EngineConfig(model=str(folder), device="cpu", threads=1, **values)
    files = fetch(config)
    resolved = resolve(config, detect(), read_facts(files), files.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_BACKEND", backend)
        patch.setattr("octavo.worker.worker.open_device", lambda name: FakeDevice(pick=random.Random(7)))
        given = msgspec.structs.replace(resolved.options, enforce_eager=not graphs)
        resolved = msgspec.structs.replace(resolved, options=given)
        executor = InlineExecutor(resolved, files, depth=2 if overlap else 1)
        with LLMEngine(config, executor=executor) as found:
            yield found


def save(reference: Any, folder: Path) -> Path:
    """With a tokenizer of bytes, whose end the models never mean."""
    reference.save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


def prompts(lengths: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 256) for _ in range(length)] for length in lengths]


@torch.inference_mode()
def shortfalls(reference: Any, prompt: list[int], output: list[int]) -> list[float]:
    """How far each token's logit is below the largest, by Transformers, in units of the logits' deviation. 0: the same
    choice."""
    ids = torch.tensor([prompt + output], device=reference.device)
    logits = reference(ids).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(output, device=logits.device)[:, None])[:, 0]
    found: list[float] = ((logits.amax(1) - chosen) / logits.std(1)).tolist()
    return found
