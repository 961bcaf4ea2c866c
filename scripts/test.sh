#!/usr/bin/env bash
# Linter, formatter and the whole test suite, in an environment that is made on the first call.
#
#   bash scripts/test.sh                       everything
#   bash scripts/test.sh -m "not slow" -x      further arguments go to pytest
#
# PYTHON= and USE_CURRENT_ENV=1: see setup_env.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root"

# Small tensors gain nothing from many threads, and the distributed tests run several processes at once.
cores="$(getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores < 4 ? cores : 4))}"
export MPLBACKEND=agg # no display is needed

python -m ruff check .
python -m ruff format --check .
python -m pytest "$@"
