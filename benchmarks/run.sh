#!/usr/bin/env bash
# Measures this checkout on this machine and writes one JSON per benchmark. Needs `make install` and an idle machine.
# Usage: benchmarks/run.sh [FOLDER]   (default: benchmarks/results/native)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/native}
port=${OCTAVO_PORT:-8137}
octavo=.venv/bin/octavo
mkdir -p "$out"

.venv/bin/python benchmarks/startup.py --json "$out/startup.json"
$octavo bench latency --input-len 512 --output-len 128 --iterations 5 --json "$out/latency_512_128.json"
$octavo bench throughput --num-prompts 8 --input-len 128 --output-len 128 --json "$out/throughput_8.json"
$octavo bench throughput --num-prompts 32 --input-len 128 --output-len 128 --json "$out/throughput_32.json"

OCTAVO_PORT=$port $octavo serve 2> "$out/serve.log" &
server=$!
trap 'kill "$server" 2> /dev/null || true' EXIT
for _ in $(seq 120); do
    if .venv/bin/python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$port/ready')" 2> /dev/null; then break; fi
    sleep 0.5
done
$octavo bench serve --url "http://127.0.0.1:$port" --num-prompts 64 --max-concurrency 32 \
    --input-len 128 --output-len 128 --json "$out/serve_32.json"
kill "$server"
wait "$server"
rm "$out/serve.log"
