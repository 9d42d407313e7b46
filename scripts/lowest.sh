#!/usr/bin/env bash
# The tests with the oldest version of each dependency that pyproject.toml allows, in a fresh environment. Arguments are
# those of pytest. Old versions warn that newer ones of what they use themselves will change.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# shellcheck disable=SC1091
. "$work/venv/bin/activate"
pip install --quiet uv
uv pip install --quiet --resolution lowest-direct ".[test]"
python -m pytest -W ignore::DeprecationWarning "$@"
