#!/usr/bin/env bash
# What needs an NVIDIA GPU, in under eight minutes: versions, the tests marked gpu, short trainings with and without
# CUDA graphs, in TF32 and by the persistent kernel, and quick runs of two benchmarks: beside other libraries, and
# beside the CPU. Each part has a time limit. What could not be checked here is named at the end, with the reason.
#
#   scripts/check_gpu.sh [DEVICE]        cuda by default; cuda:1, ... (the tests take the first one all the same)
#
# Needs: pip install '.[cuda13,test]'; for fused products and graphs '.[nvmath]'; for the other libraries torch and
# jax with CUDA. PYTHON names another Python than python3.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
device=${1:-cuda}
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} CHECK_GPU_NOTES=$work/not_checked
: >"$CHECK_GPU_NOTES"
failed=()

part() { # part SECONDS NAME COMMAND...
    local limit=$1 name=$2 code
    shift 2
    printf '\n== %s\n' "$name"
    timeout --kill-after=2 "$limit" "$@"
    code=$?
    case $code in
        0) return 0 ;;
        124 | 137) echo "FAILED (not done after $limit s): $name" ;;
        *) echo "FAILED (exit code $code): $name" ;;
    esac
    failed+=("$name")
    return 1
}

finish() {
    printf '\n'
    cat "$CHECK_GPU_NOTES"
    if [ ${#failed[@]} -gt 0 ]; then
        printf 'failed: %s\n' "${failed[@]}"
        exit 1
    elif [ -s "$CHECK_GPU_NOTES" ]; then
        echo "everything else passed"
    else
        echo "everything passed"
    fi
    exit 0
}

# Batches of 8, so that an epoch is long enough for graphs of 16 steps.
# shellcheck disable=SC2329 # a part runs it
train() { # train NAME WAY OPTIONS...; the WAY in which the steps are to be run, as check_gpu.py knows it
    local name=$1 way=$2
    shift 2
    "$python" -m gpumlp.train --device "$device" --dataset digits --batch-size 8 --learning-rate 0.05 --epochs 10 \
        --min-accuracy 0.95 --quiet --out "$work/$name" "$@" && "$python" scripts/check_gpu.py steps "$work/$name" "$way"
}

# shellcheck disable=SC2329 # a part runs it
compare() {
    "$python" -m benchmarks.compare --devices "$device" --quick --batch-sizes 32 --out "$work/compare" &&
        "$python" scripts/check_gpu.py peers "$work/compare"
}
export -f train compare
export device python work

part 10 "machine" nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
part 25 "what the check needs" "$python" scripts/check_gpu.py needs "$device" || finish
part 15 "versions" "$python" -m gpumlp.info
part 220 "tests marked gpu" env GPUMLP_REQUIRE_GPU=1 "$python" -m pytest -q -m gpu -p no:cacheprovider tests
part 20 "training, CUDA graphs" bash -c 'train graphs graphs'
part 20 "training, step by step" bash -c 'train eager eager --cuda-graphs off'
part 5 "the same weights, bit for bit" "$python" scripts/check_gpu.py weights "$work/graphs" "$work/eager"
part 20 "training, TF32" bash -c 'train tf32 graphs --matmul-precision high'
part 20 "training, persistent kernel" bash -c 'train persistent persistent --persistent-kernel on'
part 20 "training, persistent kernel again" bash -c 'train again persistent --persistent-kernel on'
part 5 "the same weights again, bit for bit" "$python" scripts/check_gpu.py weights "$work/persistent" "$work/again"
part 75 "comparison, quick: do all agree? No figures to quote" bash -c compare
part 25 "throughput, quick: no figures to quote" \
    "$python" -m benchmarks.throughput --devices cpu "$device" --quick --out "$work/throughput"
finish
