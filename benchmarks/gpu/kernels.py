"""The kernel check: on a GPU all operation tests, then every kernel at the sizes of four models, compared with PyTorch
in f32, timed, and held against what the GPU can do at most. Started by kernels.sh; always ends within --minutes.

    python benchmarks/gpu/kernels.py --out results                # on a machine with a GPU
    python benchmarks/gpu/kernels.py --out /tmp/o --interpret     # its own logic on tiny sizes; measures nothing

Tests and comparisons run in several processes at once, since most of their time is the compiler's; timings run alone
afterwards, those that a figure is asked of first. What there was no time for is listed in the result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TEST_SHARE, CHECK_SHARE = 0.36, 0.62
"""Of the time: when tests end at the latest, and comparisons after them."""
SPARE = 15.0
"""Seconds kept for writing the result and for a case that takes long."""
PROCESSES = 8
sys.path[:0] = [str(ROOT), str(HERE)]


def all_cases(tiny: bool) -> list[Any]:
    """Those that a figure is asked of first; among equals the kernels take turns, so that each has some in the end."""
    import attend
    import draws
    import mixture
    import products
    import rows
    from case import MODELS, TINY

    found = []
    for model in TINY if tiny else MODELS:
        if tiny and model.experts:
            lists: list[Iterable[Any]] = [attend.cases(model, ((2, 20),), ()), mixture.cases(model, (3,))]
        elif tiny:
            qkv = [case for case in products.cases(model, (1, 3)) if case.what.endswith("qkv")]
            lists = [
                rows.cases(model, (3,)),
                attend.cases(model, ((2, 20),), ((5, 20),)),
                qkv,
                draws.cases(model, (2,)),
            ]
        else:
            lists = [each.cases(model) for each in (rows, attend, products, draws, mixture)]
        for each in lists:
            found += list(each)
    turn: dict[tuple[int, str], int] = {}

    def order(case: Any) -> tuple[int, int]:
        turn[case.priority, case.kernel] = turn.get((case.priority, case.kernel), 0) + 1
        return case.priority, turn[case.priority, case.kernel]

    return [case for _, case in sorted(((order(case), case) for case in found), key=lambda pair: pair[0])]


def free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check(case: Any, device: Any) -> dict[str, Any]:
    """One comparison with PyTorch. FlashInfer compiles what it has for the case."""
    import torch

    try:
        call = case.make(device)
        error = call.error()
        if call.peer:
            with contextlib.suppress(RuntimeError, ImportError, ValueError, TypeError):  # told when it is timed
                call.peer()
    except torch.OutOfMemoryError:
        raise
    except Exception as wrong:  # a kernel that does not compile must not end the check of the others
        return {"error": None, "correct": False, "why": f"{type(wrong).__name__}: {str(wrong)[:300]}"}
    return {"error": error, "correct": error <= case.tolerance, "why": None}  # not-a-number is not correct


def check_shard(args: argparse.Namespace) -> None:
    """Every n-th case, one line of JSON each, until the deadline."""
    import torch

    device = torch.device("cpu" if args.interpret else "cuda")
    index, count = map(int, args.shard.split("/"))
    with (args.out / f"check-{index}.jsonl").open("w") as lines:
        for case in all_cases(args.interpret)[index::count]:
            if time.time() > args.until:
                return
            torch.manual_seed(1)
            # Where memory is short beside the other processes, the case is compared again before it is timed.
            with contextlib.suppress(torch.OutOfMemoryError):
                lines.write(json.dumps({"name": case.name, **check(case, device)}) + "\n")
                lines.flush()
            free_memory()


def run_checks(args: argparse.Namespace, until: float) -> dict[str, dict[str, Any]]:
    processes = 1 if args.interpret else min(PROCESSES, os.cpu_count() or 1)
    flags = ["--interpret"] if args.interpret else []
    command = [sys.executable, __file__, "--out", str(args.out), "--until", str(until), *flags, "--shard"]
    running = [subprocess.Popen([*command, f"{i}/{processes}"]) for i in range(processes)]
    for process in running:
        try:
            process.wait(max(until + SPARE - time.time(), 1))
        except subprocess.TimeoutExpired:
            process.kill()
    found = {}
    for i in range(processes):
        path = args.out / f"check-{i}.jsonl"
        if path.exists():
            for line in path.read_text().splitlines():
                result = json.loads(line)
                found[result.pop("name")] = result
            path.unlink()
    return found


def run_tests(args: argparse.Namespace, until: float) -> dict[str, Any]:
    """All operation tests; the interpreter's run takes one file, to test this function."""
    from suite import run_tests as run

    if args.interpret:
        return run(["tests/ops/test_layouts.py"], args.out / "tests.log", until)
    return run(["tests/ops"], args.out / "tests.log", until, PROCESSES)


def time_case(case: Any, device: Any, cache: int) -> dict[str, Any]:
    """Ours, eager PyTorch's and FlashInfer's. The interpreter's calls are made and not timed."""
    import torch
    from measure import num_sets, timing

    if device.type != "cuda":
        call = case.make(device)
        call.ours()
        call.eager()
        return {"us": None, "eager_us": None, "flashinfer_us": None, "sets": 1, "cold": False, "method": None}
    before = torch.cuda.memory_allocated()
    calls = [case.make(device)]
    footprint = torch.cuda.memory_allocated() - before
    sets, cold = num_sets(footprint, cache)
    calls += [case.make(device) for _ in range(sets - 1)]
    ours = timing([call.ours for call in calls])
    found: dict[str, Any] = {"us": ours.seconds * 1e6, "us_quartiles": [ours.low * 1e6, ours.high * 1e6]}
    found |= {"sets": sets, "cold": cold, "method": ours.method}
    for name, others in (("eager_us", [c.eager for c in calls]), ("flashinfer_us", [c.peer for c in calls if c.peer])):
        found[name] = None
        try:
            found[name] = timing(others).seconds * 1e6 if others else None
        except (RuntimeError, ImportError, ValueError, TypeError) as wrong:
            found[f"{name}_why"] = f"{type(wrong).__name__}: {str(wrong)[:200]}"
    return found


def judge(case: Any, found: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """Shares and ratios of what was timed."""
    us = found["us"]
    if us is None:
        return {"share": None, "eager_ratio": None, "flashinfer_ratio": None}
    rate = (case.nbytes if case.bound == "copy" else case.operations) / (us * 1e-6)
    best = limits["copy_bytes_per_s" if case.bound == "copy" else "matmul_operations_per_s"]
    return {
        "share": rate / best,
        "eager_ratio": found["eager_us"] and found["eager_us"] / us,
        "flashinfer_ratio": found["flashinfer_us"] and found["flashinfer_us"] / us,
    }


def run_timings(
    args: argparse.Namespace, checked: dict[str, dict[str, Any]], limits: dict[str, Any], until: float,
    done: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Adds to `done` until the time is over."""
    import torch

    device = torch.device("cpu" if args.interpret else "cuda")
    for case in all_cases(args.interpret):
        if time.time() > until:
            return
        torch.manual_seed(2)
        try:
            found = checked.get(case.name) or check(case, device)
        except torch.OutOfMemoryError as wrong:
            found = {"error": None, "correct": False, "why": str(wrong)[:300]}
        facts = {k: v for k, v in asdict(case).items() if k not in ("make", "priority")}
        result = {"name": case.name, **facts, **found}
        if found["correct"]:
            try:
                times = time_case(case, device, limits["cache_bytes"])
                result |= times | judge(case, times, limits)
            except RuntimeError as wrong:  # out of memory, a launch that is refused
                result["why"] = f"not timed: {str(wrong)[:300]}"
        done.append(result)
        free_memory()


def find_limits(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from measure import copy_rate, matmul_rate

    if args.interpret:
        return {"copy_bytes_per_s": None, "matmul_operations_per_s": None, "cache_bytes": 0}
    device = torch.device("cuda")
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    found = {
        "copy_bytes_per_s": copy_rate(device), "matmul_operations_per_s": matmul_rate(device), "cache_bytes": cache
    }  # fmt: skip
    free_memory()
    return found


def machine(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from rows import flashinfer
    from suite import facts

    found = facts(["triton"], torch.cuda.is_available() and not args.interpret)
    found["versions"]["flashinfer"] = getattr(flashinfer(), "__version__", None)
    if args.interpret:
        found["device"] = "none: Triton's interpreter"
    return {"mode": "interpret" if args.interpret else "gpu", **found}


def main() -> None:
    parser = argparse.ArgumentParser(description="Check every kernel on a GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for kernels.json, kernels.md and tests.log")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--interpret", action="store_true", help="tiny sizes by Triton's interpreter; measures nothing")
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    args.out.mkdir(parents=True, exist_ok=True)
    if args.shard:
        check_shard(args)
        return
    began, total = float(os.environ.get("BEGAN", time.time())), 60 * args.minutes
    tests = run_tests(args, began + TEST_SHARE * total)
    print(f"tests: {tests['summary']}", flush=True)
    check_began = time.time()
    checked = run_checks(args, began + CHECK_SHARE * total)
    time_began = time.time()
    print(f"compared: {len(checked)}, wrong: {sum(not found['correct'] for found in checked.values())}", flush=True)
    done: list[dict[str, Any]] = []
    limits: dict[str, Any] = {}
    facts = machine(args)

    def finish() -> None:
        seconds = {"tests": check_began - began, "comparisons": time_began - check_began}
        seconds["timings"] = time.time() - time_began
        names = {case["name"] for case in done}
        left_out = [case.name for case in all_cases(args.interpret) if case.name not in names]
        write(args.out, {**facts, "limits": limits, "tests": tests, "seconds": seconds, "cases": done,
                         "left_out": left_out})  # fmt: skip

    def give_up() -> None:
        """A call that does not come back: the results so far are written all the same."""
        finish()
        os._exit(3)

    watch = threading.Timer(max(began + total - SPARE / 2 - time.time(), 1), give_up)
    watch.daemon = True
    watch.start()
    limits |= find_limits(args)
    run_timings(args, checked, limits, began + total - SPARE, done)
    watch.cancel()
    finish()
    if tests["exit"] != 0 or any(not case["correct"] for case in done):
        sys.exit(1)


def write(out: Path, result: dict[str, Any]) -> None:
    from table import markdown

    (out / "kernels.json").write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    (out / "kernels.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
