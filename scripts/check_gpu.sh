#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in under eight minutes: versions, the tests marked gpu, a short training with
# and without CUDA graphs, in TF32 and by the persistent kernel, and a quick run of the benchmark. Each part has a
# time limit.
#
#   scripts/check_gpu.sh [DEVICE]        cuda by default; cuda:1, ...
#
# Needs: pip install '.[cuda13,test]', and for fused products and graphs also '.[nvmath]'.
set -uo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()

part() { # part SECONDS NAME COMMAND...
    local limit=$1 name=$2
    shift 2
    printf '\n== %s\n' "$name"
    timeout "$limit" "$@" || { echo "FAILED (exit code $?): $name"; failed+=("$name"); }
}

train() { # train NAME OPTIONS...
    local name=$1
    shift
    python -m gpumlp.train --device "$device" --dataset digits --epochs 30 --min-accuracy 0.95 --quiet \
        --out "$work/$name" "$@" && grep -h samples_per_second "$work/$name/metrics.json"
}

same_weights() { # same_weights NAME NAME
    python - "$work/$1" "$work/$2" <<'PYTHON'
import sys
from pathlib import Path

from safetensors.numpy import load_file

first, second = (load_file(Path(folder) / "checkpoint.safetensors") for folder in sys.argv[1:])
different = [name for name, array in first.items() if array.tobytes() != second[name].tobytes()]
sys.exit(f"{sys.argv[1]} and {sys.argv[2]} differ in {', '.join(different)}" if different else 0)
PYTHON
}

ran_persistently() {
    grep -h '"steps"' "$work/persistent/metrics.json" | tee /dev/stderr | grep -q 'by one persistent kernel'
}
export -f train same_weights ran_persistently
export device work

part 10 "machine" nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
part 20 "versions" python -m gpumlp.info
part 240 "tests marked gpu" python -m pytest -q -m gpu -p no:cacheprovider
part 24 "training, CUDA graphs where they win" bash -c 'train graphs'
part 24 "training, step by step" bash -c 'train eager --cuda-graphs off'
part 10 "the same weights, bit for bit" bash -c 'same_weights graphs eager'
part 24 "training, TF32" bash -c 'train tf32 --matmul-precision high'
part 24 "training, persistent kernel" bash -c 'train persistent --persistent-kernel on'
part 24 "the same again" bash -c 'train again --persistent-kernel on'
part 10 "it ran, and the same weights, bit for bit" bash -c 'ran_persistently && same_weights persistent again'
part 60 "benchmark, quick: no figures to quote" \
    python -m benchmarks.throughput --devices cpu "$device" --quick --out "$work/benchmark"

if [ ${#failed[@]} -gt 0 ]; then
    printf '\nfailed: %s\n' "${failed[@]}"
    exit 1
fi
printf '\neverything passed\n'
