#!/usr/bin/env bash
# Fills a folder with the wheels that kernels.sh needs on a machine with PyTorch and no network (x86-64, Python 3.12):
#
#   benchmarks/gpu/wheels.sh [FOLDER, by default .wheels] [more packages, each with its version]
#
# Only packages are fetched that are named here or after FOLDER, without what they depend on.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-.wheels}
shift || true
platforms=()
for n in 2_34 2_31 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${n}_x86_64"); done
"${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$folder" \
    pytest==9.2.0 pytest-timeout==2.4.0 pytest-xdist execnet pluggy iniconfig packaging pygments \
    hypothesis==6.170.15 sortedcontainers msgspec==0.22.0 gguf numpy tqdm pyyaml "$@"
ls -l "$folder"
