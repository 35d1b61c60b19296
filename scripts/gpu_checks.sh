#!/usr/bin/env bash
# All that can be checked and measured on a CUDA device only, in at most 8 minutes, without a network:
#     scripts/gpu_checks.sh [OUT.json]   default: gpu_checks.json, written anew; PYTHON names the interpreter
# Each check is a process of its own with a limit of its own; what it has found is in the file even if it does not end.
# Exit status: 0 all checks ran, and what they compare agrees; 1 not; 2 there is no CUDA device.
set -uo pipefail

python=${PYTHON:-python3}
out=$PWD/${1:-gpu_checks.json}
case ${1:-} in /*) out=$1 ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
budget=480 # seconds
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" WANDB_MODE=offline MPLBACKEND=Agg HF_HUB_OFFLINE=1

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
    echo "gpu_checks: torch sees no CUDA device here (or there is no torch); run it on a machine with one" >&2
    exit 2
fi

rm -f -- "$out"
result=0
for check in kernels:80 devices:60 stacked:90 hypergradients:70 vgg8:100 tests:110; do
    name=${check%:*} limit=${check#*:} left=$((budget - SECONDS - 10))
    ((limit < left)) || limit=$left
    if ((limit < 15)); then
        "$python" scripts/benchmarks/gpu_checks.py "$name" --json "$out" --left-out "no time was left"
        result=1
        continue
    fi
    printf '\n== %s, at most %d s\n' "$name" "$limit"
    timeout --kill-after=5 "$limit" "$python" scripts/benchmarks/gpu_checks.py "$name" --json "$out"
    status=$?
    ((status == 0)) && continue
    result=1
    ((status == 1)) || "$python" scripts/benchmarks/gpu_checks.py "$name" --json "$out" --ended "$status"
done
printf '\ngpu_checks: %d s, %s\n' "$SECONDS" "$out"
exit "$result"
