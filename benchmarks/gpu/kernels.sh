#!/usr/bin/env bash
# The kernel check, in one command of at most 9 minutes, without a network:
#
#   benchmarks/gpu/kernels.sh [OUT] [more options of kernels.py]
#
# For a machine with an NVIDIA GPU, Python 3.12, PyTorch 2.11 for CUDA 13 and Triton 3.6. Python packages that are
# missing there (pytest, hypothesis, msgspec …) come as wheels from $WHEELS, by default .wheels beside README.md, which
# benchmarks/gpu/wheels.sh fills where there is a network. Writes OUT/kernels.json, kernels.md and tests.log; OUT is
# benchmarks/results/h200 unless given.
set -euo pipefail
BEGAN=$(date +%s)
export BEGAN
cd "$(dirname "$0")/../.."
out=${1:-benchmarks/results/h200}
shift || true
python=${PYTHON:-python3}
wheels=${WHEELS:-.wheels}
if compgen -G "$wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONUNBUFFERED=1
# Kernels say what they need; eager PyTorch's threads would only fight with the compilers for cores.
export OMP_NUM_THREADS=1
timeout --kill-after=5 530 "$python" benchmarks/gpu/kernels.py --out "$out" --minutes 8.7 "$@"
