#!/usr/bin/env bash
# Whether this machine's GPUs are set up right, and how fast the bundles are on them: six minutes, results as they come.
#
#   bash scripts/check_gpu.sh           to gpu_check/
#   bash scripts/check_gpu.sh DIR       to another folder
#   bash scripts/check_gpu.sh --help    all options
#
# Without a GPU the same checks run at a tiny size, on the CPU. PYTHON= and USE_CURRENT_ENV=1: see setup_env.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
export MPLBACKEND=agg # no display is needed
exec python "$root/scripts/check_gpu.py" "$@"
