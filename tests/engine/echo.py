"""A model folder without weights and an executor that answers with the prompt in capitals: for tests of what stands
above the worker (offline engines, benchmarks)."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from pathlib import Path

from octavo.client.fake import IM_END, VOCAB_SIZE, write_byte_tokenizer
from octavo.executor.base import StepFailed
from octavo.wire.plan import GroupInfo, Masks, Plan, Result, WorkerInfo

FACTS = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}


class EchoExecutor:
    """Answers every prompt with its bytes in capitals and then the end token; notes what it was asked."""

    depth = 1

    def __init__(self, delay: float = 0.0, fail_at: int | None = None, raise_at: int | None = None) -> None:
        self.delay, self.fail_at, self.raise_at = delay, fail_at, raise_at
        self.steps = 0
        self.shut = 0
        self.seeds: list[int] = []
        self.threads: set[int] = set()
        self.widest = 0
        self._rows: dict[int, tuple[list[int], int]] = {}  # row -> (script, outputs so far)
        self._plans: deque[Plan] = deque()

    def start(self) -> WorkerInfo:
        return WorkerInfo(
            groups=(GroupInfo(64, 16),),
            vocab_size=VOCAB_SIZE,
            max_model_len=256,
            device="cpu",
            dtype="float32",
            backend="echo",
            weights_bytes=0,
            kv_bytes=0,
        )

    def submit(self, plan: Plan) -> None:
        self._plans.append(plan)

    def masks(self, masks: Masks) -> None:
        raise NotImplementedError

    def collect(self) -> Result:
        plan = self._plans.popleft()
        self.threads.add(threading.get_ident())
        self.steps += 1
        time.sleep(self.delay)
        for row in plan.release:
            del self._rows[row]
        for admit in plan.admit:
            prompt, output = admit.token_ids[: admit.num_prompt_tokens], admit.token_ids[admit.num_prompt_tokens :]
            self.seeds.append(admit.seed)
            self._rows[admit.row] = ([*bytes(i for i in prompt if i < 256).upper(), IM_END], len(output))
        if self.steps == self.fail_at:
            raise StepFailed("broken on purpose")
        if self.steps == self.raise_at:
            raise RuntimeError("a bug on purpose")
        ids = []
        for run in plan.run:
            if run.samples:
                script, done = self._rows[run.row]
                ids.append(script[done % len(script)])
                self._rows[run.row] = (script, done + 1)
        self.widest = max(self.widest, len(ids))
        return Result(plan.index, tuple(zip(ids)))

    def shutdown(self) -> None:
        self.shut += 1


def write_model(folder: Path) -> Path:
    """config.json and a byte tokenizer; → the folder."""
    (folder / "config.json").write_text(json.dumps(FACTS))
    write_byte_tokenizer(folder)
    return folder
