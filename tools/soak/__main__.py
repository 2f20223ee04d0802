"""The soak: starts `octavo serve`, loads it for DURATION seconds (1800), kills its processes, and reports.

First 32 streams while the engine is killed ten times; then mixed load: 20% of the clients hang up, 15% are hostile. The
server is killed in the first third of the time, the engine in the first two: what memory does without kills is seen in
the rest. Exit code 0 when all held: nothing wrong, nothing lost, nothing left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "procs"), str(ROOT / "tests" / "pure")]

from served import Octavo, wait_until  # noqa: E402
from unharmed import unharmed  # noqa: E402

from tools.soak.actions import Known, act, known_bodies  # noqa: E402
from tools.soak.client import Answer, post  # noqa: E402
from tools.soak.report import Report  # noqa: E402

CLIENTS = 24
TEN = 10
SETTLE_S = 8.0
"""So long after a kill a refusal is no error: the engine starts."""


class Killer:
    """Ends processes at random moments, and remembers when."""

    def __init__(self, octavo: Octavo, rng: random.Random, report: Report) -> None:
        self._octavo = octavo
        self._rng = rng
        self._report = report
        self.kills: list[tuple[float, str]] = []

    def kill(self, title: str) -> float | None:
        """→ seconds until the server said that it is not ready, for an engine."""
        process = self._octavo.children().get(title)
        if process is None:
            return None
        self.kills.append((time.monotonic(), title))
        self._report.kills[title] += 1
        process.kill()
        if title != "octavo-engine":
            return None
        killed = time.monotonic()
        wait_until(lambda: self._octavo.get("/ready")[0] != 200, "/ready to notice", 30.0)
        noticed = time.monotonic() - killed
        self._report.slowest_notice = max(self._report.slowest_notice, noticed)
        return noticed

    def run(self, end: float, duration: float, every: tuple[float, float]) -> None:
        while (left := end - time.monotonic()) > duration / 3:
            time.sleep(min(self._rng.uniform(*every), left))
            is_server = left > 2 * duration / 3 and self._rng.random() < 0.4
            self.kill("octavo-server" if is_server else "octavo-engine")

    def excuses(self, answer: Answer) -> bool:
        """A server was killed while this was asked, or an engine was starting when it was refused."""
        for at, title in self.kills:
            if title == "octavo-server" and answer.started - SETTLE_S < at < answer.ended:
                return True
            if answer.status == 503 and at < answer.ended and answer.started < at + 60.0:
                return True
        return False

    def spans_engine_kill(self, answer: Answer) -> bool:
        begun = answer.first or answer.started
        return any(title == "octavo-engine" and begun < at < answer.ended for at, title in self.kills)


def ten_kills(octavo: Octavo, killer: Killer, rng: random.Random, report: Report) -> None:
    """32 streams, ten kills: 32 complete answers, each the right one."""
    bodies = known_bodies(rng, 32, (500, 600))
    port = octavo.port or 0
    with ThreadPoolExecutor(32) as pool:
        undisturbed = [answer.text for answer in pool.map(lambda body: post(port, "/v1/completions", body), bodies)]
        streams = [pool.submit(post, port, "/v1/completions", {**body, "stream": True}) for body in bodies]
        kills = 0
        while kills < TEN and not all(stream.done() for stream in streams):
            time.sleep(rng.uniform(0.1, 2.5))
            kills += killer.kill("octavo-engine") is not None
        answers = [stream.result() for stream in streams]
    right = sum(a.complete and a.text == text for a, text in zip(answers, undisturbed, strict=True))
    report.ten_kills = {"streams": len(bodies), "kills": kills, "complete and right": right}
    report.check(right == len(bodies), f"ten kills: {right} of {len(bodies)} streams are complete and right")
    report.check(kills == TEN, f"ten kills: only {kills} fell into the time of the streams")


def mixed(octavo: Octavo, killer: Killer, rng: random.Random, report: Report, duration: float) -> None:
    port = octavo.port or 0
    bodies = known_bodies(rng, 24, (8, 120))
    known = [Known(body, post(port, "/v1/completions", body).text) for body in bodies]
    end = time.monotonic() + duration
    seeds = [rng.random() for _ in range(CLIENTS)]

    def client(seed: float) -> None:
        own = random.Random(seed)
        while time.monotonic() < end:
            kind, answer, right = act(own, port, known)
            report.count(kind, answer, right, excused=killer.excuses(answer), resumed=killer.spans_engine_kill(answer))
            if answer.status == 503 or not answer.status:
                time.sleep(0.2)

    threads = [threading.Thread(target=client, args=(seed,), daemon=True) for seed in seeds]
    for thread in threads:
        thread.start()
    killing = threading.Thread(target=killer.run, args=(end, duration, (8.0, 30.0)), daemon=True)
    killing.start()
    while time.monotonic() < end:
        report.sample(octavo, duration - (end - time.monotonic()))
        time.sleep(min(15.0, duration / 20))
    for thread in [*threads, killing]:
        thread.join(500.0)
        report.check(not thread.is_alive(), "a client hangs")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools.soak", description=__doc__)
    parser.add_argument("--duration", type=float, default=float(os.environ.get("DURATION", 1800)), help="seconds")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "soak.json")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    report = Report(args.model, args.duration, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--served-model-name",
            "smollm2-135m",
            "--max-num-seqs",
            "32",
            "--max-queued-requests",
            "32",
            "--max-model-len",
            "1024",
        ]
        memory = ["--kv-cache-memory", "192MiB"]  # half of what 32 long streams would like: some are preempted
        octavo = Octavo(Path(folder), "serve", args.model, "--port", "0", *options, *memory)
        try:
            octavo.started()
            killer = Killer(octavo, rng, report)
            warm_up(octavo, rng)
            with unharmed(octavo, pages_free_s=20.0, rss_slack=256 << 20):
                ten_kills(octavo, killer, rng, report)
                mixed(octavo, killer, rng, report, args.duration)
        except AssertionError as error:
            report.check(False, str(error)[:2000])
        finally:
            octavo.close()
            report.log(octavo.output)
    found = report.as_json()
    print(report.text(found))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if report.held else 1


def warm_up(octavo: Octavo, rng: random.Random) -> None:
    """Everything once, so that what is loaded lazily is there before memory is looked at."""
    bodies = known_bodies(rng, 8, (8, 16))
    known = [Known(body, "") for body in bodies]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda seed: act(random.Random(seed), octavo.port or 0, known), range(120)))


if __name__ == "__main__":
    sys.exit(main())
