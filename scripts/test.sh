#!/usr/bin/env bash
# Linter, formatter and the whole test suite, in an environment that is made on the first call.
#
#   bash scripts/test.sh                       everything
#   bash scripts/test.sh -m "not slow" -x      further arguments go to pytest; `-n 0` for one process, as a debugger needs
#
# PYTHON= and USE_CURRENT_ENV=1: see setup_env.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$root"

# A process for each core, up to four (each takes up to 4 GB), and a file of tests to one of them, for its fixtures' sake.
# Small tensors gain nothing from more threads than one. A process that a hanging test has ended is not started again: it
# would begin with that test.
cores="$(getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export MPLBACKEND=agg # no display is needed
unset PYTHONDONTWRITEBYTECODE # hundreds of commands import the project: it need not be compiled for each

python -m ruff check .
python -m ruff format --check .
python -m pytest --numprocesses "$((cores < 4 ? cores : 4))" --dist loadfile --max-worker-restart 0 "$@"
