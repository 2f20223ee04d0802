"""What a streamed token costs around the engine: CPU microseconds of the server process and of the load generator.

Usage: python benchmarks/server_cost.py [--model MODEL] [--streams 32] [--step-ms 14] [--json FILE]

A real server process with the model's own tokenizer, on an engine whose steps only sleep and invent tokens: so the rate
is known, and the cores are free for what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from octavo.bench.report import document
from octavo.config.engine import DEFAULT_MODEL, EngineConfig, ServerConfig
from octavo.config.hardware import detect
from octavo.config.resolve import resolve
from octavo.engine.assembly import build_loop
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.hub import fetch
from octavo.wire.endpoint import private_endpoint
from octavo.wire.plan import GroupInfo, Masks, Plan, Result, WorkerInfo
from octavo.wire.sockets import SocketTransport


class Sleeper:
    """An executor whose steps sleep; tokens are drawn from the whole vocabulary."""

    depth = 1

    def __init__(self, step_ms: float, vocab_size: int) -> None:
        self._seconds = step_ms / 1e3
        self._vocab_size = vocab_size
        rng = random.Random(0)
        self._tokens = [rng.randrange(100, vocab_size) for _ in range(4096)]
        self._at = 0
        self._plans: list[Plan] = []

    def start(self) -> WorkerInfo:
        return WorkerInfo(
            groups=(GroupInfo(8192, 16),), vocab_size=self._vocab_size, max_model_len=2048, device="none", dtype="none",
            backend="sleeper", weights_bytes=0, kv_bytes=0,
        )  # fmt: skip

    def submit(self, plan: Plan) -> None:
        self._plans.append(plan)

    def masks(self, masks: Masks) -> None:
        raise NotImplementedError

    def collect(self) -> Result:
        time.sleep(self._seconds)
        plan = self._plans.pop()
        count = sum(run.samples for run in plan.run)
        self._at = (self._at + count) % (len(self._tokens) - count)
        return Result(plan.index, tuple(zip(self._tokens[self._at : self._at + count])))

    def shutdown(self) -> None:
        pass


def serve_engine(endpoint: str, model: str, step_ms: float) -> None:
    """Until killed."""
    config = EngineConfig(model=model)
    files = fetch(config)
    facts = read_facts(files)
    executor = Sleeper(step_ms, facts.vocab_size)
    resolved = resolve(config, detect(), facts, files.name)
    loop, _ = build_loop(resolved, files, executor.start(), executor, SocketTransport(endpoint))
    loop.run(lambda: False)


def serve_http(endpoint: str, port: int) -> None:
    from octavo.server import process

    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    process.main(ServerConfig(port=port, log_level="warning"), endpoint, (listener.detach(),))


def cpu(pid: int) -> float:
    """Seconds on a core, of all threads, as the scheduler counted them."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--step-ms", type=float, default=14.0)
    parser.add_argument("--port", type=int, default=8139)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--role", nargs=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.role:
        role, endpoint = asked.role
        serve_engine(endpoint, asked.model, asked.step_ms) if role == "engine" else serve_http(endpoint, asked.port)
        return
    with private_endpoint() as endpoint:
        own = [sys.executable, __file__, "--model", asked.model, "--step-ms", str(asked.step_ms)]
        own += ["--port", str(asked.port)]
        children = [subprocess.Popen([*own, "--role", role, endpoint]) for role in ("engine", "server")]
        try:
            figures = measure(children[1].pid, asked)
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.wait(10)
    print(json.dumps(figures))
    if asked.json:
        load = {"streams": asked.streams, "step_ms": asked.step_ms, "input_len": 128, "output_len": 128}
        asked.json.write_text(json.dumps(document("server_cost", figures, load, config=None, engine=None), indent=2))


def measure(server: int, asked: argparse.Namespace) -> dict[str, Any]:
    import asyncio

    import uvloop

    from octavo.bench.http import Server
    from octavo.bench.serve import Load, run_load, serve_figures, served_model
    from octavo.errors import ConfigError

    target = Server(f"http://127.0.0.1:{asked.port}")

    async def run() -> dict[str, Any]:
        for _ in range(200):
            try:
                model = await served_model(target)
                break
            except ConfigError:
                await asyncio.sleep(0.05)
        else:
            raise SystemExit("the server does not start")
        count = asked.streams
        await run_load(target, model, Load(count, 128, 16))
        before, own, began = cpu(server), time.process_time(), time.perf_counter()
        samples = await run_load(target, model, Load(count * asked.rounds, 128, 128, concurrency=count))
        duration = time.perf_counter() - began
        found = serve_figures(samples, duration, 128)
        tokens = sum(s.output_tokens for s in samples)
        found["server_us_per_token"] = round((cpu(server) - before) / tokens * 1e6, 2)
        found["client_us_per_token"] = round((time.process_time() - own) / tokens * 1e6, 2)
        found["tokens"] = tokens
        return found

    return uvloop.run(run())


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
