"""What the engine does between two steps, and what share of a step that is: microseconds by part, for steady decode.

Usage: python benchmarks/overhead.py [--model MODEL] [--streams 1,8,32] [--depth 1] [--json FILE]

The real engine loop on a real socket, with a real client in a process of its own. With --model the steps are the
model's; without, a stand-in that walks through memory for --step-ms, so that it throws the engine's own data out of the
caches as a real step does. Only turns that decode all streams and nothing else are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from octavo.bench.report import document, percentile
from octavo.client.base import Prompt
from octavo.client.engine import EngineClient
from octavo.client.fake import VOCAB_SIZE, write_byte_tokenizer
from octavo.config.engine import EngineConfig
from octavo.config.hardware import detect
from octavo.config.resolve import ResolvedConfig, resolve
from octavo.engine.assembly import build_loop
from octavo.executor.base import Executor
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import ModelFiles, locate
from octavo.modelfiles.hub import fetch
from octavo.types import SamplingParams
from octavo.wire.endpoint import private_endpoint
from octavo.wire.plan import GroupInfo, Masks, Plan, Result, WorkerInfo
from octavo.wire.sockets import SocketTransport

PARTS = ("receive", "schedule", "step", "update", "send")
PROMPT = 128


class StandIn:
    """An executor whose step reads memory for about `step_ms` and invents tokens."""

    def __init__(self, step_ms: float, depth: int) -> None:
        self.depth = depth
        self._memory = np.ones(16 << 20, np.uint8)
        self._seconds = step_ms / 1e3
        self._plans: deque[Plan] = deque()
        self._token = 0

    def start(self) -> WorkerInfo:
        return WorkerInfo(
            groups=(GroupInfo(16384, 16),),
            vocab_size=VOCAB_SIZE,
            max_model_len=8192,
            device="none",
            dtype="none",
            backend="stand-in",
            weights_bytes=0,
            kv_bytes=0,
        )

    def submit(self, plan: Plan) -> None:
        self._plans.append(plan)

    def masks(self, masks: Masks) -> None:
        raise NotImplementedError

    def collect(self) -> Result:
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end:
            self._memory[: 4 << 20].sum()
        plan = self._plans.popleft()
        self._token = (self._token + 1) % 96
        count = sum(run.samples for run in plan.run)
        return Result(plan.index, ((32 + self._token,),) * count)

    def shutdown(self) -> None:
        pass


class Profile:
    """Time spent in the parts of each turn; `end_turn` keeps it when the turn was a steady one."""

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._now: dict[str, float] = defaultdict(float)
        self._plan: Plan | None = None
        self.turns: list[dict[str, float]] = []

    def watch(self, owner: Any, method: str, part: str) -> None:
        """From now on the method's time is added to the part."""
        inner, now = getattr(owner, method), self._now

        def timed(*args: Any) -> Any:
            cpu = time.thread_time_ns() if part == "step" else 0
            began = time.perf_counter_ns()
            found = inner(*args)
            now[part] += (time.perf_counter_ns() - began) / 1e3
            if part == "step":
                now["step_cpu"] += (time.thread_time_ns() - cpu) / 1e3
            if part == "schedule":
                self._plan = found or self._plan
            return found

        setattr(owner, method, timed)

    def turn(self, call: Callable[[], object]) -> None:
        """One turn of the loop."""
        self._plan = None
        self._now.clear()
        cpu, began = time.thread_time_ns(), time.perf_counter_ns()
        call()
        self._now["turn"] = (time.perf_counter_ns() - began) / 1e3
        self._now["turn_cpu"] = (time.thread_time_ns() - cpu) / 1e3
        plan = self._plan
        if plan is not None and len(plan.run) == self._streams and all(run.num_tokens == 1 for run in plan.run):
            self.turns.append(dict(self._now))

    def figures(self) -> dict[str, Any]:
        """Microseconds per turn. `own` is what is not the step, by the wall's clock and by the thread's (`own_cpu`):
        the wall's counts it, too, when the client that a message wakes up takes the core for itself."""
        parts = {part: [turn.get(part, 0.0) for turn in self.turns] for part in (*PARTS, "turn")}
        parts["other"] = [t["turn"] - sum(t.get(part, 0.0) for part in PARTS) for t in self.turns]
        own = [t["turn"] - t["step"] for t in self.turns]
        own_cpu = [t["turn_cpu"] - t["step_cpu"] for t in self.turns]
        mean = {part: sum(values) / len(values) for part, values in parts.items()}
        return {
            "turns": len(self.turns),
            "us_p50": {part: round(percentile(values, 50), 1) for part, values in parts.items()},
            "us_mean": {part: round(value, 1) for part, value in mean.items()},
            "own_us_p50": round(percentile(own, 50), 1),
            "own_us_p99": round(percentile(own, 99), 1),
            "own_us_mean": round(sum(own) / len(own), 1),
            "own_cpu_us_p50": round(percentile(own_cpu, 50), 1),
            "own_cpu_us_mean": round(sum(own_cpu) / len(own_cpu), 1),
            "own_cpu_percent": round(100 * sum(own_cpu) / sum(t["turn"] for t in self.turns), 2),
            "own_percent": round(100 * sum(own) / sum(t["turn"] for t in self.turns), 2),
        }


def measure(
    make: Callable[[], Executor], resolved: ResolvedConfig, files: ModelFiles, streams: int, tokens: int
) -> dict[str, Any]:
    """Figures for one number of streams, on a fresh engine."""
    executor = make()
    worker = executor.start()
    try:
        with private_endpoint() as endpoint:
            transport = SocketTransport(endpoint)
            loop, _ = build_loop(resolved, files, worker, executor, transport)
            gc.collect()
            gc.freeze()
            profile = Profile(streams)
            profile.watch(transport, "receive", "receive")
            profile.watch(transport, "send", "send")
            profile.watch(loop._scheduler, "schedule", "schedule")
            profile.watch(loop._scheduler, "update", "update")
            profile.watch(executor, "collect", "step")
            client = subprocess.Popen([sys.executable, __file__, "--client", endpoint, str(streams), str(tokens)])
            while client.poll() is None:
                profile.turn(lambda: loop.turn(0.05))
            transport.close()
            if client.returncode or not profile.turns:
                raise SystemExit(f"the client failed: {client.returncode}")
            return profile.figures()
    finally:
        executor.shutdown()


async def be_client(endpoint: str, streams: int, tokens: int) -> None:
    """Reads `streams` streams of `tokens` tokens to their end, twice: the first time warms up."""
    client = EngineClient(endpoint)
    await client.start()
    while not client.ready:
        await asyncio.sleep(0.01)
    assert client.info is not None
    rng = random.Random(0)

    async def read(count: int) -> None:
        prompt = [rng.randrange(min(client.tokenizer.vocab_size, client.info.vocab_size)) for _ in range(PROMPT)]  # type: ignore[union-attr]
        params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=count)
        async for _ in await client.generate(Prompt(token_ids=prompt), params):
            pass

    await asyncio.gather(*(read(tokens) for _ in range(streams)))
    await client.close()


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        asyncio.run(be_client(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        return
    logging.basicConfig()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--step-ms", type=float, default=1.5)
    parser.add_argument("--depth", type=int, default=1, help="plans in flight, without --model")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    streams = [int(count) for count in asked.streams.split(",")]
    load = {"input_len": PROMPT, "output_len": asked.tokens}
    with tempfile.TemporaryDirectory() as name:
        if asked.model:
            from octavo.executor.inline import InlineExecutor

            files = fetch(EngineConfig(model=asked.model))
            resolved = resolve(EngineConfig(model=asked.model), detect(), read_facts(files), files.name)
            make: Callable[[], Executor] = lambda: InlineExecutor(resolved, files)  # noqa: E731
            figures = {str(n): measure(make, resolved, files, n, asked.tokens) for n in streams}
        else:
            load |= {"step_ms": asked.step_ms, "depth": asked.depth}
            folder = Path(name)
            facts = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
                     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                     "vocab_size": VOCAB_SIZE, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
                     "torch_dtype": "float32"}  # fmt: skip
            (folder / "config.json").write_text(json.dumps(facts))
            write_byte_tokenizer(folder)
            files = locate(folder, "stand-in")
            config = EngineConfig(model=name, device="cpu", max_num_seqs=max(streams))
            resolved = resolve(config, detect(), read_facts(files), "stand-in")
            make = lambda: StandIn(asked.step_ms, asked.depth)  # noqa: E731
            figures = {str(n): measure(make, resolved, files, n, asked.tokens) for n in streams}
    for count, found in figures.items():
        print(count, json.dumps(found))
    if asked.json:
        found = document("overhead", {"streams": figures}, load, config=None, engine=None)
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
