"""Pins, the commands of the Makefile, and the set-up's care for half-made environments, without installing anything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


def pins(file: str) -> dict[str, Requirement]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith(("#", "-r "))]
    assert not [line for line in lines if line.startswith("-")], "options belong to the user's pip configuration"
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(pin.name): pin for pin in found if pin.marker is None or pin.marker.evaluate()}


def declared() -> list[Requirement]:
    block = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert block is not None
    return [Requirement(text) for text in re.findall(r'"([^"]+)"', block.group(1))]


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt", "requirements-build.txt"])
def test_every_package_is_pinned_exactly(file: str) -> None:
    for pin in pins(file).values():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, str(pin)


def test_pins_satisfy_what_is_declared() -> None:
    pinned = pins("requirements.txt")
    for wish in declared():
        if wish.marker is not None and not wish.marker.evaluate():
            continue
        (specifier,) = pinned[canonicalize_name(wish.name)].specifier
        assert wish.specifier.contains(specifier.version), f"{wish} is pinned to {specifier}"


def test_octavo_is_built_with_what_is_pinned() -> None:
    pinned = pins("requirements-build.txt")
    block = re.search(r"^requires = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.M)
    assert block is not None
    for wish in map(Requirement, re.findall(r'"([^"]+)"', block.group(1))):
        assert wish.specifier == pinned[canonicalize_name(wish.name)].specifier
    everywhere = pins("requirements.txt") | pins("requirements-dev.txt")
    for name in pinned.keys() & everywhere.keys():
        assert pinned[name].specifier == everywhere[name].specifier, f"{name} is pinned twice, differently"


def test_a_cpu_build_of_torch_satisfies_the_pin() -> None:
    assert pins("requirements.txt")["torch"].specifier.contains("2.13.0+cpu")


def test_oracles_of_the_tests_are_no_runtime_dependencies() -> None:
    assert not {"transformers", "gguf", "openai", "pytest"} & set(pins("requirements.txt"))


def test_make_alone_lists_the_commands() -> None:
    shown = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("install", "serve", "chat", "bench", "test", "test-all", "lint", "sanitize", "clean"):
        assert f"make {command} " in shown.stdout


BACKEND = """
import pathlib, zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    assert not pathlib.Path("broken").exists()
    assert config_settings == {"wheel.cmake": "false"}
    with zipfile.ZipFile(pathlib.Path(folder, "octavo-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("octavo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: octavo\\nVersion: 1.0\\n")
        tags = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr("octavo-1.0.dist-info/WHEEL", tags)
        wheel.writestr("octavo-1.0.dist-info/RECORD", "")
    return "octavo-1.0-py3-none-any.whl"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose packages are none and whose own build needs none, so that nothing is downloaded."""
    folder = tmp_path / "check out"
    (folder / "tools").mkdir(parents=True)
    for name in ("setup", "watched.py", "native_cache.py"):
        shutil.copy(ROOT / "tools" / name, folder / "tools" / name)
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-build.txt"):
        (folder / name).write_text("# nothing\n")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    return folder


def setup(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """On a machine without a C++ compiler."""
    return subprocess.run(
        [checkout / "tools/setup", "dev"],
        env={**os.environ, "PYTHON": sys.executable, "CXX": "no-such-compiler", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def stages(ran: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split()[1] for line in ran.stderr.splitlines() if line.startswith("==>") and "done in" not in line]


ALL = ["making", "installing", "installing", "installing", "installing"]


@pytest.mark.long
def test_setup_repairs_what_is_broken_and_repeats_nothing_that_is_done(checkout: Path) -> None:
    (checkout / "broken").touch()
    failed = setup(checkout)
    assert failed.returncode == 1
    assert stages(failed) == ALL
    assert "octavo: could not finish: installing octavo itself" in failed.stderr
    assert "AssertionError" in failed.stderr and "(all of it: build/install.log)" in failed.stderr
    (checkout / "broken").unlink()
    repaired = setup(checkout)
    assert repaired.returncode == 0, repaired.stderr
    assert stages(repaired) == [*ALL, "no"], "an install that was cut off marks the environment"
    assert "no native kernels (no C++ compiler: 'sudo apt install g++'); octavo computes" in repaired.stderr
    assert "done in" in repaired.stderr
    assert stages(setup(checkout)) == []
    (checkout / "requirements-dev.txt").write_text("# changed\n")
    assert stages(setup(checkout)) == ["installing"]
    (checkout / "csrc").mkdir()
    (checkout / "csrc/kernel.cpp").touch()
    assert stages(setup(checkout)) == ["installing", "no"]
    assert stages(setup(checkout)) == []


def test_setup_without_python_or_venv_is_one_line(checkout: Path, tmp_path: Path) -> None:
    missing = setup(checkout, PYTHON="no-such-python")
    assert missing.returncode == 1
    assert missing.stderr.strip().startswith("octavo: no-such-python is not installed")
    bare = tmp_path / "bare-python"
    bare.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *) exit 0;; esac\n')
    bare.chmod(0o755)
    without = setup(checkout, PYTHON=str(bare))
    assert without.returncode == 1
    assert without.stderr.splitlines() == [
        f"octavo: {bare} cannot make virtual environments: run 'sudo apt install python3-venv' and try again"
    ]
