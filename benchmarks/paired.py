"""Two checkouts against each other, at the same time: each runs the demo model in a process of its own with one thread,
pinned to a core; the cores change places every round. What disturbs the machine then disturbs both alike, so the ratio
of a round is steadier than figures taken one after the other. (Whole steps over all cores: `octavo bench`, in turns.)

    python benchmarks/paired.py BEFORE AFTER --json benchmarks/results/native/paired.json

BEFORE and AFTER are folders with a checkout and its .venv. Needs two cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

COLUMNS = {
    "prefill, 512 tokens": (512, 1, 1),
    "decode, 1 sequence": (16, 128, 1),
    "decode, 8 sequences": (16, 128, 8),
    "32 x (128, 64)": (128, 64, 32),
}
"""Prompt tokens, output tokens, prompts."""
ROUNDS = 9


def serve_rounds() -> None:
    """In a checkout's own Python: one line in, one round, one line out."""
    import random
    import time

    from octavo import LLM, SamplingParams

    llm = LLM(threads=1, seed=0)

    def one(prompt_len: int, output_len: int, count: int, seed: int) -> tuple[float, float]:
        numbers = random.Random(seed)  # new prompts in each round: nothing comes from the prefix cache
        prompts = [[numbers.randrange(1000, 20000) for _ in range(prompt_len)] for _ in range(count)]
        params = SamplingParams(max_tokens=output_len, temperature=0, ignore_eos=True)
        wall, processor = time.perf_counter(), time.process_time()
        llm.generate(prompts, params)
        return time.perf_counter() - wall, time.process_time() - processor

    one(16, 8, 1, 0)
    print("ready", flush=True)
    for line in sys.stdin:
        core, *what = map(int, line.split())
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})
        print(*one(*what), flush=True)


def start(tree: Path) -> subprocess.Popen[str]:
    command = [tree / ".venv/bin/python", Path(__file__).resolve(), "--serve-rounds"]
    return subprocess.Popen(
        command, cwd=tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def compare(trees: dict[str, Path]) -> dict[str, object]:
    """→ per column the ratios after / before of speeds, by wall and by processor time."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    processes = {name: start(tree) for name, tree in trees.items()}
    columns: dict[str, object] = {}
    for process in processes.values():
        assert process.stdout is not None and process.stdout.readline() == "ready\n", "a checkout does not start"
    for column, what in COLUMNS.items():
        ratios = []
        for number in range(ROUNDS):
            for place, process in enumerate(processes.values()):
                assert process.stdin is not None
                print(cores[(place + number) % 2], *what, number, file=process.stdin, flush=True)
            found = [[float(part) for part in p.stdout.readline().split()] for p in processes.values() if p.stdout]
            ratios.append([before / after for before, after in zip(*found, strict=True)])
        wall, processor = zip(*ratios, strict=True)
        columns[column] = {
            "wall": round(statistics.median(wall), 3),
            "processor": round(statistics.median(processor), 3),
            "rounds": [round(ratio, 3) for ratio in wall],
        }
        print(f"{column:22} {columns[column]}")
    for process in processes.values():
        process.terminate()
    return columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    trees = {"before": arguments.before.resolve(), "after": arguments.after.resolve()}
    result: dict[str, object] = {
        "benchmark": "paired",
        "what": "ratios of speeds, after / before, both at the same time on a core each, cores in turns; medians",
        "date": datetime.date.today().isoformat(),
        "commits": {
            name: subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=tree, capture_output=True, text=True, check=True
            ).stdout.strip()
            for name, tree in trees.items()
        },
        "columns": compare(trees),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve-rounds"]:
        serve_rounds()
    else:
        main()
