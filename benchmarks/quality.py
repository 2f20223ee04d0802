"""How far the next-token distributions of Octavo and of its peers are from the exact ones, over a real text.

Exact is the f32 reference on the dequantized weights: Octavo's reference backend with --dtype float32. Every subject
computes the logits of the same windows of the same token ids in a process of its own (benchmarks/logits/), the peers
with their own interpreters. Usage, from the repository's root:

    python benchmarks/quality.py MODEL [--llama-python PYTHON] [--transformers-python PYTHON] [--out FOLDER]

MODEL: a .gguf file, or a folder with safetensors (then the peer is Transformers). Writes FOLDER/NAME.json and
FOLDER/NAME.md, a table. Needs 400 MB of disk space per subject and no network.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
TEXT = HERE / "data" / "prose.txt"
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Subject:
    """One way to compute logits. `command`: interpreter, script and what follows MODEL, IDS, OUT."""

    name: str
    python: str
    script: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def compute(self, model: str, ids: Path, out: Path) -> dict[str, Any]:
        """Writes the logits to `out`; → what the script says of itself."""
        command = [self.python, str(HERE / "logits" / self.script), model, str(ids), str(out), *self.arguments]
        done = subprocess.run(command, env=os.environ | self.environment, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{self.name}: {' '.join(command)} ended with {done.returncode}")
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


def octavo(name: str, dtype: str, kv: str = "auto", backend: str = "cpu", isa: str | None = None) -> Subject:
    environment = {"OCTAVO_BACKEND": backend} | ({"OCTAVO_CPU_ISA": isa} if isa else {})
    return Subject(name, sys.executable, "octavo_logits.py", (dtype, kv), environment)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def deviation(exact_path: Path, path: Path, ids: NDArray[np.int64]) -> dict[str, float]:
    """Of the logits [positions, vocab] at `path` from the exact ones."""
    exact, other = np.load(exact_path, mmap_mode="r"), np.load(path, mmap_mode="r")
    assert exact.shape == other.shape, f"{path.name}: {other.shape} logits, {exact.shape} expected"
    kl, same, difference, loss = [], [], [], []
    following = np.concatenate((ids[:, 1:], np.full((len(ids), 1), -1)), axis=1).ravel()
    for at in range(0, len(exact), ROWS_AT_ONCE):
        part = slice(at, at + ROWS_AT_ONCE)
        p, q, known = log_softmax(exact[part]), log_softmax(other[part]), following[part]
        kl.append((np.exp(p) * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
        difference.append(np.abs(exact[part] - other[part]).mean(-1))
        loss.append(-q[np.arange(len(q)), known][known >= 0])
    kls = np.concatenate(kl)
    return {
        "mean_kl": float(kls.mean()),
        "mean_kl_error": float(kls.std() / np.sqrt(len(kls))),
        "median_kl": float(np.median(kls)),
        "p99_kl": float(np.quantile(kls, 0.99)),
        "max_kl": float(kls.max()),
        "top1_agreement": float(np.concatenate(same).mean()),
        "mean_logit_difference": float(np.concatenate(difference).mean()),
        "perplexity": float(np.exp(np.concatenate(loss).mean())),
    }


def windows(model: str, length: int) -> NDArray[np.int64]:
    """The text as token ids [windows, length]; what is left at its end is not used."""
    from octavo.modelfiles.files import locate
    from octavo.text.tokenizer import Tokenizer

    ids = Tokenizer.load(locate(Path(model))).encode(TEXT.read_text(), add_special_tokens=False)
    count = len(ids) // length
    return np.array(ids[: count * length], np.int64).reshape(count, length)


def subjects(model: str, options: argparse.Namespace) -> list[Subject]:
    found = [octavo("Octavo", "auto"), octavo("Octavo, int8 KV", "auto", "int8")]
    found += [octavo(f"Octavo, {isa}", "auto", isa=isa) for isa in options.isa]
    if options.bfloat16:
        found.append(octavo("Octavo, --dtype bfloat16", "bfloat16"))
    found.append(octavo("Octavo, reference backend in bf16", "bfloat16", backend="reference"))
    if options.llama_python and model.endswith(".gguf"):
        found.append(Subject("llama.cpp", options.llama_python, "llama_cpp_logits.py"))
        found.append(Subject("llama.cpp, q8_0 KV", options.llama_python, "llama_cpp_logits.py", ("q8_0",)))
    if options.transformers_python and not model.endswith(".gguf"):
        found.append(Subject("Transformers bf16", options.transformers_python, "transformers_logits.py"))
    return found


def commit() -> str:
    """Of the code that is measured, wherever this script lies; "+" when files were changed since. "": no checkout."""
    import octavo as measured

    assert measured.__file__ is not None
    command = ["git", "describe", "--always", "--exclude", "*", "--dirty=+"]
    done = subprocess.run(command, cwd=Path(measured.__file__).parent, capture_output=True, text=True)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """To be called before measuring: the checkout may move on meanwhile."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| | mean KL | median | p99 | max | top-1 agreement | mean logit difference | perplexity |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        lines.append(
            f"| {r['subject']} | {r['mean_kl']:.2g} ± {r['mean_kl_error']:.1g} | {r['median_kl']:.2g} | "
            f"{r['p99_kl']:.2g} | {r['max_kl']:.2g} | {100 * r['top1_agreement']:.2f}% | "
            f"{r['mean_logit_difference']:.3f} | {r['perplexity']:.3f} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Deviation of next-token distributions from the f32 reference.")
    parser.add_argument("model")
    parser.add_argument("--llama-python", help="interpreter that has llama-cpp-python")
    parser.add_argument("--transformers-python", help="interpreter that has Transformers")
    parser.add_argument("--isa", nargs="*", default=[], help="lower instruction sets to measure too: avx2, portable")
    parser.add_argument("--bfloat16", action="store_true", help="also --dtype bfloat16, where auto is another")
    parser.add_argument("--windows", type=int, help="the first so many; default: all")
    parser.add_argument("--window", type=int, default=512, help="tokens per window")
    parser.add_argument("--name", help="of the result; default: the model's")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "quality")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    model = str(Path(options.model).resolve())
    ids, on = windows(model, options.window)[: options.windows], machine()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="octavo-quality-") as folder:
        ids_path, exact, other = (Path(folder) / name for name in ("ids.npy", "exact.npy", "other.npy"))
        np.save(ids_path, ids)
        octavo("f32", "float32", backend="reference").compute(model, ids_path, exact)
        results.append({"subject": "f32 reference"} | deviation(exact, exact, ids))
        for subject in subjects(model, options):
            said = subject.compute(model, ids_path, other)
            results.append({"subject": subject.name} | deviation(exact, other, ids) | {"computed_by": said})
            print(table(results[-1:]).splitlines()[-1], file=sys.stderr)
    text = {"file": TEXT.name, "windows": ids.shape[0], "window": ids.shape[1], "positions": ids.size}
    report: dict[str, Any] = {"model": Path(model).name, "text": text, "machine": on, "results": results}
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.name or Path(model).stem
    (options.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    title = (
        f"{Path(model).name}: {ids.size} positions of {TEXT.name}, on {on['cpu']}, commit {on['commit']}, {on['date']}"
    )
    (options.out / f"{name}.md").write_text(f"{title}\n\n{table(results)}\n")
    print(f"{title}\n\n{table(results)}")


if __name__ == "__main__":
    main()
