#!/usr/bin/env bash
# The engine check, in one command of at most 9 minutes, without a network:
#
#   benchmarks/gpu/engine.sh [OUT] [more options of engine.py]
#
# For a machine with an NVIDIA GPU, Python 3.12, PyTorch 2.11 for CUDA 13 and Triton 3.6. All else that Octavo and its
# tests need comes as wheels from $WHEELS, by default .wheels beside README.md, which benchmarks/gpu/wheels.sh fills
# where there is a network; Octavo itself runs from this folder, without native kernels. Writes OUT/engine.json,
# engine.md, engine.log and engine-tests.log; OUT is benchmarks/results/h200 unless given.
set -euo pipefail
BEGAN=$(date +%s)
export BEGAN
cd "$(dirname "$0")/../.."
out=${1:-benchmarks/results/h200}
shift || true
python=${PYTHON:-python3}
wheels=${WHEELS:-.wheels}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if compgen -G "$wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --target "$site" \
        "$wheels"/*.whl
    export PYTHONPATH="$site:$PYTHONPATH"
fi
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
timeout --kill-after=5 535 "$python" benchmarks/gpu/engine.py --out "$out" --minutes 8.8 "$@"
