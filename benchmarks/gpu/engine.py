"""The engine check: on a GPU the tests of the engine, then its speed by the interfaces that users have, held against
what the GPU can do at most and against Transformers. Started by engine.sh; always ends within --minutes.

    python benchmarks/gpu/engine.py --out results            # on a machine with a GPU
    python benchmarks/gpu/engine.py --out /tmp/o --dry       # its own logic: tiny models on the CPU; measures nothing

While the tests run, every part runs once with little work, so that compilers are done before anything is timed. Parts
are timed alone, each in a process of its own, those first of which a figure is asked; what there was no time for, and
what failed, is listed in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from engine_work import DRY, WARM, Amount, Figure, Rates, Scene  # noqa: E402

TESTS = "tests/gpu"
TEST_SHARE = 0.36
"""Of the time: when tests and warming end at the latest."""
SPARE = 12.0
"""Seconds kept for writing the result."""
PROCESSES = 4
"""That run tests."""


RUNNING: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Part:
    module: str
    function: str
    seconds: float
    """It may take at most."""
    least: float
    """With less time than that it is not begun."""

    @property
    def name(self) -> str:
        return f"{self.module.removeprefix('engine_')}.{self.function}"

    def work(self, scene: Scene) -> Iterator[Callable[[], Figure]]:
        found: Iterator[Callable[[], Figure]] = getattr(import_module(self.module), self.function)(scene)
        return found


PARTS = [
    Part("engine_octavo", "llama_1b", 90, 25),
    Part("engine_octavo", "llama_8b", 75, 25),
    Part("engine_octavo", "qwen", 75, 20),
    Part("engine_served", "llama_1b", 75, 30),
    Part("engine_peers", "llama_1b", 75, 25),
    Part("engine_peers", "llama_8b", 80, 30),
    Part("engine_peers", "qwen", 80, 40),
]


def run_parts(args: argparse.Namespace) -> None:
    """In a child: one line of JSON for each piece of work, with what it found or why it failed."""
    from measure import copy_rate, matmul_rate

    device = "cpu" if args.dry else "cuda"
    amount = DRY if args.dry else WARM if args.warm else Amount()
    rates = Rates(**json.loads(args.rates)) if args.rates else None
    scene = Scene(device, args.models, amount, rates, dry=args.dry)
    silent = args.dry or args.warm
    with args.lines.open("a", buffering=1) as lines:
        for name in args.parts.split(","):
            if name == "rates":
                import torch

                where = torch.device(device)
                found = {"rates": {"copy": copy_rate(where), "matmul": matmul_rate(where)}}
                lines.write(json.dumps(found) + "\n")
                continue
            part = next(part for part in PARTS if part.name == name)
            try:
                for piece in part.work(scene):
                    figure = piece()
                    if silent:
                        figure.value, figure.details = None, {}
                    lines.write(json.dumps({"part": name, **asdict(figure)}) + "\n")
                lines.write(json.dumps({"part": name, "done": True}) + "\n")
            except Exception as error:
                import traceback

                traceback.print_exc()
                why = f"{type(error).__name__}: {str(error)[:300]}"
                lines.write(json.dumps({"part": name, "failed": why}) + "\n")


def child(args: argparse.Namespace, parts: str, *flags: str) -> tuple[subprocess.Popen[bytes], Path]:
    lines = args.out / f"lines-{parts.replace(',', '-')[:60]}{'-warm' if '--warm' in flags else ''}.jsonl"
    lines.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--out", str(args.out), "--models", str(args.models), "--lines", str(lines)]
    if args.dry:
        flags = ("--dry", *flags)
    with (args.out / "engine.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--parts", parts, *flags], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    RUNNING.append(process)
    return process, lines


def stop(_number: int, _frame: FrameType | None) -> None:
    """Told to end: children have sessions of their own, and would go on."""
    for process in RUNNING:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    sys.exit(1)


def ended(process: subprocess.Popen[bytes], lines: Path, until: float) -> list[dict[str, Any]]:
    """Waits, and ends what is not done in time with all it has started; → its lines."""
    late = False
    try:
        process.wait(max(until - time.time(), 0.1))
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    text = lines.read_text() if lines.exists() else ""
    found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # the last may be cut off
    lines.unlink(missing_ok=True)
    if late:
        found.append({"late": True})
    elif process.returncode != 0:
        found.append({"failed": f"the process ended with {process.returncode}"})
    return found


class Check:
    """The result as it grows; `write` may be called at any time."""

    def __init__(self, args: argparse.Namespace, began: float) -> None:
        self.args, self.began = args, began
        self.end = began + 60 * args.minutes
        self.result: dict[str, Any] = {
            "mode": "dry" if args.dry else "gpu", "device": None, "versions": {}, "rates": None, "tests": None,
            "seconds": {}, "figures": [], "left_out": [], "failed": [],
        }  # fmt: skip

    def run(self) -> bool:
        """→ whether all of it went well."""
        from suite import facts

        result, args = self.result, self.args
        result |= facts(["triton", "flashinfer-python", "transformers", "tokenizers"], not args.dry)
        self.write()
        result["tests"] = self._tests_and_warming(self.began + TEST_SHARE * 60 * args.minutes)
        self.write()
        if not args.dry:
            found = ended(*child(args, "rates"), time.time() + 40)
            result["rates"] = next((line["rates"] for line in found if "rates" in line), None)
            if result["rates"] is None:
                result["failed"].append({"part": "rates", "failed": "neither copies nor products were timed"})
        names = [part.name for part in PARTS if not args.only or part.name in args.only]
        for group in [names] if args.dry else [[name] for name in names]:
            self._group(group)
            self.write()
        tests = result["tests"]
        return tests["exit"] == 0 and not result["failed"]

    def _tests_and_warming(self, until: float) -> dict[str, Any]:
        from suite import run_tests

        args, began = self.args, time.time()
        warming = [] if args.dry else [(part, child(args, part.name, "--warm")) for part in PARTS]
        paths = ["tests/gpu/test_figures.py"] if args.dry else [TESTS]
        tests = run_tests(paths, args.out / "engine-tests.log", until, 1 if args.dry else PROCESSES)
        print(f"tests: {tests['summary']}", flush=True)
        self.result["seconds"]["tests"] = time.time() - began
        for part, (process, lines) in warming:
            found = ended(process, lines, until)
            self.result["seconds"][f"warming {part.name}"] = time.time() - began
            bad = [line for line in found if "failed" in line or "late" in line]
            if bad:
                print(f"warming {part.name}: {bad[0]}", flush=True)
        return tests

    def _group(self, names: list[str]) -> None:
        result, began = self.result, time.time()
        parts = [part for part in PARTS if part.name in names]
        left = self.end - SPARE - began
        if left < (1 if self.args.dry else parts[0].least):
            result["left_out"] += names
            return
        until = began + (left if self.args.dry else min(left, parts[0].seconds))
        flags = ["--rates", json.dumps(result["rates"])] if result["rates"] else []
        found = ended(*child(self.args, ",".join(names), *flags), until)
        done = {line["part"] for line in found if line.get("done")}
        result["figures"] += [line for line in found if "work" in line]
        result["failed"] += [line for line in found if "failed" in line]
        if any("late" in line for line in found):
            result["left_out"] += [f"{name} (in part)" for name in names if name not in done]
        result["seconds"][",".join(names)] = time.time() - began
        print(f"{', '.join(names)}: {len(found)} lines in {time.time() - began:.0f} s", flush=True)

    def write(self) -> None:
        from engine_table import judged, markdown

        result = {**self.result, "figures": judged(self.result["figures"])}
        result["seconds"] = {**result["seconds"], "all": time.time() - self.began}
        (self.args.out / "engine.json").write_text(json.dumps(result, indent=1) + "\n")
        (self.args.out / "engine.md").write_text(markdown(result))


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the engine on a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for engine.json, engine.md and logs")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU; measures nothing")
    parser.add_argument("--only", action="append", choices=[part.name for part in PARTS], help="these parts alone")
    for name in ("--parts", "--rates"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help="folder for model folders; by default beside the results, removed")
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.parts:
        run_parts(args)
        return
    began = float(os.environ.get("BEGAN", time.time()))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "engine.log").unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory() as folder:
        args.models = args.models or Path(folder)
        well = Check(args, began).run()
    print((args.out / "engine.md").read_text())
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
