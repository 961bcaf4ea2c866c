#!/usr/bin/env bash
# MONAI Label's server with the bundles of this collection, in an environment that is made on the first call.
#
#   bash scripts/monai_label.sh STUDIES NAME=WEIGHTS [NAME=WEIGHTS ...]   the images' folder; a bundle and its model.pt
#   bash scripts/monai_label.sh --set_up                                  only the environment
#   bash scripts/monai_label.sh --help                                    all options
#
# The environment is .venv-monailabel, with the versions of requirements-monailabel.txt, never the project's own.
# PYTHON=: see setup_env.sh; here 3.11 or 3.12.
set -euo pipefail
environment_name=.venv-monailabel
requirements_name=requirements-monailabel.txt
versions="3.11 or 3.12"
USE_CURRENT_ENV=0

install_packages() {
    local install=("$environment/bin/python" -m pip install)
    logged "${install[@]}" --requirement <(grep -v -e '--no-deps$' "$requirements")
    logged "${install[@]}" --no-deps $(sed -n 's/ *# --no-deps$//p' "$requirements")
}

source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
[ "${1:-}" != --set_up ] || exit 0
export MPLBACKEND=agg # no display is needed
# `shared` is for packing alone: the server gets what is packed.
PYTHONPATH="$root" exec python "$root/scripts/monai_label.py" "$@"
