"""What the soak has seen, and whether all of it held."""

from __future__ import annotations

import platform
import re
import subprocess
import threading
import time
from collections import Counter
from typing import Any

import psutil
from served import Octavo

from tools.soak.client import Answer

GROWTH_MB = 64.0
"""What a process may grow while nobody kills it, after the first quarter of its life."""
OBSERVED_S = 120.0
"""Shorter lives say nothing about growth."""


class Report:
    def __init__(self, model: str, duration: float, seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self.slowest_notice = 0.0
        self.ten_kills: dict[str, int] = {}
        self._about = {"model": model, "duration_s": duration, "seed": seed}
        self._requests: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._excused: Counter[str] = Counter()
        self._resumed = 0
        self._memory: list[dict[str, Any]] = []
        self._broken: list[str] = []
        self._lock = threading.Lock()
        self._log: Counter[str] = Counter()

    @property
    def held(self) -> bool:
        return not self._broken

    def check(self, held: bool, what: str) -> None:
        if not held:
            self._broken.append(what)

    def count(self, kind: str, answer: Answer, right: bool, *, excused: bool, resumed: bool) -> None:
        with self._lock:
            self._requests[kind] += 1
            outcome = f"{answer.status} {answer.code}"
            if kind in ("left", "look"):
                self._answers[f"{kind}: {outcome}"] += 1
                self._watch_status(kind, answer, excused)
                return
            expected = answer.error is None or kind == "hostile" or answer.code == "queue_full"
            if answer.complete and right and expected and answer.status != 503:
                self._answers[f"{kind}: {outcome}"] += 1
                self._resumed += resumed and answer.status == 200
            elif excused and not (answer.complete and answer.error is None):
                self._excused[f"{kind}: {outcome}"] += 1
            else:
                self._answers[f"{kind}: {outcome}"] += 1
                self._broken.append(
                    f"{kind}: {outcome}, right {right}: {answer.path} {str(answer.error or answer.text)[:300]}"
                )

    def _watch_status(self, kind: str, answer: Answer, excused: bool) -> None:
        if answer.status >= 500 and not excused and not answer.path.startswith("/ready"):
            self._broken.append(f"{kind}: {answer.status} {answer.path} {answer.error}")

    def sample(self, octavo: Octavo, at: float) -> None:
        try:
            processes = octavo.children()
            mb = {title: process.memory_info().rss / 2**20 for title, process in processes.items()}
        except psutil.Error:
            return
        self._memory.append(
            {"at_s": at, "mb": mb, "pids": {title: process.pid for title, process in processes.items()}}
        )

    def growth(self) -> dict[str, dict[str, float]]:
        """Of the last process of each kind: its memory after its first samples, and at the end."""
        found = {}
        for title in ("octavo-engine", "octavo-server"):
            there = [s for s in self._memory if title in s["mb"]]
            samples = [s for s in there if s["pids"][title] == there[-1]["pids"][title]]
            if len(samples) < 4:
                continue
            settled = samples[len(samples) // 4 :]
            first = max(s["mb"][title] for s in settled[: max(len(settled) // 4, 1)])
            last = min(s["mb"][title] for s in settled[-max(len(settled) // 4, 1) :])
            lived = samples[-1]["at_s"] - samples[0]["at_s"]
            found[title] = {"before_mb": round(first, 1), "after_mb": round(last, 1), "observed_s": round(lived)}
            self.check(
                lived < OBSERVED_S or last - first < GROWTH_MB, f"{title} grew from {first:.0f} to {last:.0f} MiB"
            )
        return found

    def log(self, output: str) -> None:
        """Tracebacks and errors in the log."""
        self._log["tracebacks"] = output.count("Traceback (most recent call last)")
        self._log["errors"] = len(re.findall(r"^\S+ ERROR", output, re.MULTILINE))
        self.check(not self._log["tracebacks"], "the log has a traceback: " + _around(output, "Traceback"))

    def as_json(self) -> dict[str, Any]:
        growth = self.growth()
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        return {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "commit": commit.stdout.strip(),
            "python": platform.python_version(),
            **self._about,
            "held": self.held,
            "requests": dict(sorted(self._requests.items())),
            "answers": dict(sorted(self._answers.items())),
            "lost to a killed server or refused while the engine started": dict(sorted(self._excused.items())),
            "streams and answers that went on after a kill of the engine": self._resumed,
            "kills": dict(self.kills),
            "slowest_notice_s": round(self.slowest_notice, 3),
            "ten_kills": self.ten_kills,
            "memory": growth,
            "log": dict(self._log),
            "broken": self._broken[:50],
        }

    @staticmethod
    def text(report: dict[str, Any]) -> str:
        lines = []
        for name, value in report.items():
            if isinstance(value, dict):
                lines.append(f"{name}:")
                lines += [f"  {key:40} {item}" for key, item in value.items()]
            elif isinstance(value, list):
                lines += [f"BROKEN: {item}" for item in value]
            else:
                lines.append(f"{name}: {value}")
        return "\n".join(lines)


def _around(text: str, word: str) -> str:
    at = text.find(word)
    return text[max(at - 200, 0) : at + 1500] if at >= 0 else ""
