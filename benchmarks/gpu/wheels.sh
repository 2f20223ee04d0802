#!/usr/bin/env bash
# Fills a folder with the wheels that kernels.sh and engine.sh need on a machine with PyTorch, Triton and no network
# (x86-64, Python 3.12):
#
#   benchmarks/gpu/wheels.sh [FOLDER, by default .wheels] [more packages, each with its version]
#
# Octavo's own dependencies with the versions of requirements.txt, and what the tests need with those of
# requirements-dev.txt; not PyTorch and what comes with it. SKIP="numpy transformers" leaves out what the machine has in
# a version that will do, where the folder must be small. Lists the files with their sizes; fails where one of them does
# not exist for that machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.wheels}
shift || true
python=${PYTHON:-python3}
platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
for ((n = 39; n >= 5; n--)); do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
packages=$("$python" - "${SKIP:-}" <<'END'
import re
import sys
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

MACHINE = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux",
           "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython",
           "platform_python_implementation": "CPython", "os_name": "posix", "extra": ""}
WITH_TORCH = {"torch", "mpmath", "networkx", "setuptools", "sympy"}
FOR_TESTS = {"certifi", "charset-normalizer", "execnet", "gguf", "hypothesis", "iniconfig", "pluggy", "pytest",
             "pytest-timeout", "pytest-xdist", "regex", "requests", "sortedcontainers", "transformers", "urllib3"}
skip = {name.lower() for name in sys.argv[1].split()}


def pinned(path: str) -> dict[str, str]:
    lines = [re.sub(r"\s*#.*", "", line) for line in Path(path).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    return {r.name.lower(): f"{r.name}{r.specifier}" for r in found if r.marker is None or r.marker.evaluate(MACHINE)}


wanted = {name: text for name, text in pinned("requirements.txt").items() if name not in WITH_TORCH}
tests = {name: name for name in FOR_TESTS} | pinned("requirements-dev.txt")
wanted |= {name: tests[name] for name in FOR_TESTS}
print(*(text for name, text in sorted(wanted.items()) if name not in skip), sep="\n")
END
)
# shellcheck disable=SC2086 # one word a package
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" -d "$folder" $packages "$@"
(cd "$folder" && du -ch --apparent-size -- *.whl)
