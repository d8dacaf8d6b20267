#!/usr/bin/env bash
# Test and time dpd on a GPU host without a network: bench/gpu.sh parity|speed|runs [flags]
# Each part takes at most eight minutes, including compilation, and writes its results so far to
# bench/results/gpu-PART.json; bench/tables.py writes docs/benchmarks.md's section from them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
part=${1:?"which part: parity, speed or runs"}
shift
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
# The script ends by its own clock; this timeout is for one that hangs.
exec timeout --signal=TERM --kill-after=10 500 "${PYTHON:-python3}" bench/gpu.py "$part" "$@"
