#!/usr/bin/env bash
# Prove and time the suite on a GPU host, without a network: bench/gpu.sh parity|speed|runs [flags]
# Each part takes at most eight minutes, compiling included, and keeps what it has got by then in
# bench/results/gpu-PART.json; bench/gpu_tables.py makes the section of docs/benchmarks.md from it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
part=${1:?"which part: parity, speed or runs"}
shift
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
# The script ends by its own clock; this is for what hangs.
exec timeout --signal=TERM --kill-after=10 500 "${PYTHON:-python3}" bench/gpu.py "$part" "$@"
