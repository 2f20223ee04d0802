"""How long a start takes with everything cached: `octavo serve` to /ready, and the parts one can measure alone.

Usage: python benchmarks/startup.py [--runs 5] [--json FILE] [MODEL]

Each run is a process of its own; the first of a kind is not counted, it warms the file cache. The figures are seconds:
ready (start of the command to the first 200 of /ready), and the imports of the server process, the command line and
PyTorch, measured inside a fresh interpreter. Bytecode is kept, as Python does unless told otherwise: without it every
start compiles all of octavo.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from octavo.bench.report import document, percentile

IMPORTS = {
    "import_server_s": "octavo.server.process",
    "import_command_line_s": "octavo.cli.app",
    "import_torch_s": "torch",
}
TIMED = "import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
PATIENCE_S = 120.0
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a start takes.")
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = {name: [imported(module) for _ in range(asked.runs + 1)][1:] for name, module in IMPORTS.items()}
    found["ready_s"] = [ready(asked.model) for _ in range(asked.runs + 1)][1:]
    figures = {
        name: {"median": round(percentile(seconds, 50), 3), "least": round(min(seconds), 3)}
        for name, seconds in found.items()
    }
    for name, figure in figures.items():
        print(f"{name:24}{figure['median']:8.3f} s  (least {figure['least']:.3f})")
    if asked.json is not None:
        load = {"model": asked.model, "runs": asked.runs}
        asked.json.write_text(json.dumps(document("startup", figures, load, config=None, engine=None), indent=2) + "\n")


def imported(module: str) -> float:
    command = [sys.executable, "-c", TIMED.format(module=module)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout)


def ready(model: str) -> float:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "octavo", "serve", model, "--port", str(port)]
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        while not answers(port):
            if server.poll() is not None or time.perf_counter() - started > PATIENCE_S:
                server.kill()
                sys.exit(f"octavo serve does not get ready:\n{server.communicate()[1]}")
            time.sleep(0.01)
        return time.perf_counter() - started
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    main()
