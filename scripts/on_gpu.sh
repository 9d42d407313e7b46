#!/usr/bin/env bash
# Measures and tests gpumlp on an NVIDIA card, in ten minutes at most, and writes one folder to read and to send.
#
#   scripts/on_gpu.sh [FOLDER]           default: gpu-results/NAME-OF-THE-CARD-DATE
#   PARTS="training compare" scripts/on_gpu.sh      only these parts (scripts/on_gpu.sh --help lists them)
#   PYTHON=.venv/bin/python DEVICE=cuda:1 scripts/on_gpu.sh
#
# It runs from a checkout; nothing has to be installed but the libraries: pip install ".[cuda13,nvmath,test]", and
# for the comparison and the profile PyTorch and JAX with CUDA. A part that fails or is not possible here does not
# stop the others. Exit code: 0, 1 (a part failed) or 2 (no usable GPU).
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
exec "${PYTHON:-python3}" "$checkout/scripts/on_gpu.py" "$@"
