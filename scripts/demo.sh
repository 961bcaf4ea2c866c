#!/usr/bin/env bash
# The main job of a bundle on made-up data, in an environment that is made on the first call.
#
#   bash scripts/demo.sh                                   the default bundle, abdominal_unetr_cbs
#   bash scripts/demo.sh NAME --output_dir DIR             another bundle of the folder bundles/, another output folder
#   bash scripts/demo.sh --help                            all options
#
# PYTHON= and USE_CURRENT_ENV=1: see setup_env.sh.
set -euo pipefail
bundles="$(cd "$(dirname "${BASH_SOURCE[0]}")/../bundles" && pwd -P)"
name="${1:---}" # an option instead of a name is left to demo.py
if [ "${name#-}" = "$name" ] && [ ! -d "$bundles/$name" ]; then
    printf 'Error: there is no bundle %s. Known bundles:\n' "$name" >&2
    printf '  %s\n' $(ls "$bundles") >&2
    exit 1
fi

source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
export MPLBACKEND=agg # no display is needed
exec python "$root/scripts/demo.py" "$@"
